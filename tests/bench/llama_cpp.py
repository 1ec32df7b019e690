"""Prefill and decoding of llama.cpp as its llama-bench measures them. peers.py starts it.

python tests/bench/llama_cpp.py LLAMA_BENCH GGUF FOLDER JOB         # prefill or decode
"""

import json
import os
import subprocess
import sys

OPTIONS = {"prefill": "-p 100,872,4000 -n 0", "decode": "-p 0 -n 64 -d 100,2000"}


def main() -> None:
    binary, gguf, _, job = sys.argv[1:]
    command = [
        binary,
        "-m",
        gguf,
        *OPTIONS[job].split(),
        "-t",
        str(os.cpu_count()),
        "-r",
        "1",
        "-o",
        "json",
    ]
    tests = json.loads(subprocess.check_output(command, text=True))
    values = {
        f"prefill_{test['n_prompt']}": test["avg_ns"] / 1e9 for test in tests if test["n_prompt"]
    }
    values |= {f"decode_{test['n_depth']}": test["avg_ts"] for test in tests if test["n_gen"]}
    versions = {"llama.cpp": str(tests[0]["build_number"]), "weights": tests[0]["model_type"]}
    print(json.dumps({"versions": versions, "values": values}))


if __name__ == "__main__":
    main()
