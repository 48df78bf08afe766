"""Serve the digits with Django, over ASGI under uvicorn: an `async def` view and a `def` view share batches.

Run it, after `pip install -e '.[examples]' django`, with:

    python examples/serve_django.py --port 8000

and ask it as `serve_fastapi.py` is asked. Settings, views and addresses stand in this one file; the views work as they
are in a project of many.
"""

import argparse

import uvicorn
from digits import figures, image_of_json, predict
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["localhost", "127.0.0.1"])


@require_POST
async def classify(request: HttpRequest) -> JsonResponse:
    """Return the digit on an image."""
    try:
        image = image_of_json(request.body)
    except ValueError as error:
        return JsonResponse({"error": str(error)}, status=400)
    return JsonResponse({"digit": await predict.aio(image)})


@require_POST
def classify_in_thread(request: HttpRequest) -> JsonResponse:
    """Return the digit on an image; over ASGI, Django calls this in a thread that it starts for the request."""
    try:
        image = image_of_json(request.body)
    except ValueError as error:
        return JsonResponse({"error": str(error)}, status=400)
    return JsonResponse({"digit": predict(image)})


@require_GET
async def get_figures(_: HttpRequest) -> JsonResponse:
    """Return what batching did so far."""
    return JsonResponse(figures())


urlpatterns = [
    path("classify", classify),
    path("classify-in-thread", classify_in_thread),
    path("figures", get_figures),
]
app = get_asgi_application()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the digits with Django.")
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1; 0 for any (default: 8000)")
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
