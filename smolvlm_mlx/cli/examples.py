"""Examples of the commands, which --help shows; the tests parse each."""

EXAMPLES = {
    "": (
        'smolvlm-mlx generate --image cat.jpg "What is in the picture?"',
        "smolvlm-mlx chat --web",
        "smolvlm-mlx models",
    ),
    "generate": (
        'smolvlm-mlx generate --image cat.jpg "What is in the picture?"',
        'smolvlm-mlx generate -m 2.2B -i page.png --max-tiles 5 "Read the title."',
        'git diff | smolvlm-mlx generate --system "Answer in one sentence." -',
    ),
    "chat": (
        "smolvlm-mlx chat --image cat.jpg",
        "smolvlm-mlx chat --web -m 256M",
        "smolvlm-mlx chat --resume last",
    ),
    "live": (
        "smolvlm-mlx live",
        'smolvlm-mlx live clip.mp4 --every 1 --count 3 -p "What is in the picture?"',
    ),
    "serve": (
        "smolvlm-mlx serve --port 8080 -m 500M -n 200",
        "smolvlm-mlx serve --host 0.0.0.0 --allow-host box.local:8080",
    ),
    "caption": (
        "smolvlm-mlx caption photos --out captions.jsonl",
        "smolvlm-mlx caption photos --out alt.csv --preset alt",
    ),
    "document": (
        "smolvlm-mlx document report.pdf --pages 1-3,7 --output markdown -o report.md",
        "smolvlm-mlx document scan.jpg --output text -m 500M",
    ),
    "evaluate": ("smolvlm-mlx evaluate textvqa.jsonl --metric vqa -m 256M -m 500M",),
    "info": (
        "smolvlm-mlx info 256M --image cat.jpg",
        "smolvlm-mlx info",
    ),
    "convert": (
        "smolvlm-mlx convert 2.2B smolvlm2-8bit --bits 8 --check",
        "smolvlm-mlx convert base-4bit receipts-model --adapter run/adapter",
        "smolvlm-mlx convert receipts receipts-hf --layout huggingface",
    ),
    "finetune": (
        "smolvlm-mlx finetune receipts.jsonl run -m 500M --preset 8gb --estimate",
        "smolvlm-mlx finetune receipts.jsonl run -m 500M --preset 8gb --resume",
    ),
    "adapters": ("smolvlm-mlx adapters export run/adapter run/peft",),
    "adapters export": (
        "smolvlm-mlx adapters export run/adapter run/peft",
        "smolvlm-mlx adapters export peft-adapter mlx-adapter --as mlx",
    ),
    "bench": (
        "smolvlm-mlx bench 256M",
        "smolvlm-mlx bench --random 500M --bits 4 --quick",
    ),
    "models": (
        "smolvlm-mlx models",
        "smolvlm-mlx models pull 256M docling",
        "smolvlm-mlx models rm 500M --yes",
    ),
    "models list": ("smolvlm-mlx models list --json",),
    "models pull": ("smolvlm-mlx models pull 256M docling",),
    "models rm": ("smolvlm-mlx models rm 500M",),
    "history": (
        "smolvlm-mlx history search cat",
        "smolvlm-mlx history export 3f cat.md",
    ),
    "history list": ("smolvlm-mlx history list -n 5",),
    "history search": ('smolvlm-mlx history search "red circle"',),
    "history show": ("smolvlm-mlx history show 3f",),
    "history export": ("smolvlm-mlx history export 3f cat.zip",),
    "history rename": ('smolvlm-mlx history rename 3f "The cat of March"',),
    "history delete": (
        "smolvlm-mlx history delete 3f 9a",
        "smolvlm-mlx history delete --all --yes",
    ),
}
