"""What a quantized model learns from, where nobody gives it anything: questions and drawn pictures.

Only the questions are written down; the answers are the source's own.
"""

from PIL import Image, ImageDraw

_TOPICS = """
the moon; bread; bicycles; volcanoes; the number seven; cats; democracy; rain; the violin; money;
the heart; steam engines; winter; honesty; maps; whales; chess; glass; the Roman empire; sleep;
computers; gardens; light; friendship; coffee; earthquakes; libraries; bridges; salt; football;
evolution; clocks; rivers; a lost key; vaccines; dinosaurs; tea; the alphabet; satellites; mirrors;
fire; bees; photography; an old lighthouse; algebra; trains; the desert; music; insurance; paper;
electricity; a shy robot; cooking rice; mountains; gravity; elections; the printing press; dogs;
loneliness; plastic; the ocean; a busy market; recycling; stars
""".replace("\n", " ").strip().split("; ")
_FORMS = (
    "What is important to know about {}?",
    "Explain {} to a child of six.",
    "Write a short story about {}.",
    "Give three facts about {}.",
    "What do people often get wrong about {}?",
    "Write four lines of a poem about {}.",
    "I know nothing about {}. Where should I begin?",
    "Write a polite e-mail to a colleague about {}.",
    "List five words that have to do with {}.",
    "Why does {} matter today?",
    "Write a dialogue of two friends who disagree about {}.",
    "Answer in one sentence: what would the world be without {}?",
    "What happened in history that has to do with {}?",
    "Write a title and a first paragraph of an article about {}.",
    "Make a table with two columns and three rows about {}.",
)
PICTURE_QUESTIONS = (
    "What is in this picture?",
    "Describe the picture in detail.",
    "Which colors do you see?",
    "How many things are there?",
    "What does the text say?",
)
_COLORS = ("crimson", "royalblue", "seagreen", "orange", "purple", "black", "deeppink", "teal")
_WORDS = ("EXIT", "1984", "SALE 50%", "Page 7", "OPEN", "Room B12", "TOTAL 34.90", "Hello")


def text_questions(count: int) -> list[str]:
    """Return so many questions, each with another pair of topic and form for the first 960."""
    return [
        _FORMS[number % len(_FORMS)].format(_TOPICS[number % len(_TOPICS)])
        for number in range(count)
    ]


def drawn_pictures(count: int) -> list[Image.Image]:
    """Return so many pictures (384 x 288) of shapes, bars and words, each another."""
    return [_draw(number) for number in range(count)]


def _draw(number: int) -> Image.Image:
    image = Image.new("RGB", (384, 288), ("white", "lightyellow", "gainsboro")[number % 3])
    draw = ImageDraw.Draw(image)
    for place in range(1 + number % 5):
        color = _COLORS[(number + 3 * place) % len(_COLORS)]
        left, top = 12 + 74 * place, 20 + 31 * ((number + place) % 4)
        box = left, top, left + 60, top + 60 + 40 * (number % 2)
        if (number + place) % 3 == 0:
            draw.ellipse(box, fill=color)
        elif (number + place) % 3 == 1:
            draw.rectangle(box, outline=color, width=8)
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), (left + 30, top)], fill=color)
    draw.text((20, 236), _WORDS[number % len(_WORDS)], fill="black", font_size=30)
    return image
