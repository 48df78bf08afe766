"""Serve the digits with Flask, under gunicorn with threads.

Run it, after `pip install -e '.[examples]' flask gunicorn`, with:

    gunicorn --chdir examples --threads 128 --bind 127.0.0.1:8000 serve_flask:app

and ask it as `serve_fastapi.py` is asked. Each thread brings one image at a time: with 128 of them, one batch of 64
gathers while another one runs. A second worker would be a second process, with a forest and batches of its own.
"""

from digits import figures, image_of_json, predict
from flask import Flask, request

app = Flask(__name__)


@app.post("/classify")
def classify() -> tuple[dict[str, object], int]:
    """Return the digit on an image."""
    try:
        image = image_of_json(request.get_data())
    except ValueError as error:
        return {"error": str(error)}, 400
    return {"digit": predict(image)}, 200


@app.get("/figures")
def get_figures() -> dict[str, float]:
    """Return what batching did so far."""
    return figures()
