"""The documentation page: titles, keys and error bodies as they are, not as the framework guesses them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from service.upload_fields import form_schema

DOCS, DOCS_ASSETS = "/docs", "/docs-assets"

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe_app(app: FastAPI, version: str) -> None:
    """Give the app its title and a schema that tells the truth about errors and keys."""
    app.title, app.version = "Tenora", version
    app.description = "One frozen base model, many LoRA adapters, in the same batch."

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _amend(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]


def add_docs(app: FastAPI) -> None:
    """Serve the documentation page with scripts of its own: FastAPI's loads them from a public network."""
    # Only the files of that package are wanted; its application class is not ours to subclass.
    package = find_spec("fastapi_offline")
    assert package is not None and package.origin is not None
    app.mount(DOCS_ASSETS, StaticFiles(directory=Path(package.origin).parent / "static"), name="docs-assets")

    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Tenora",
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_ASSETS}/favicon.png",
        )

    app.add_api_route(DOCS, docs, methods=["GET"], include_in_schema=False)


def _amend(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for guessed in ("HTTPValidationError", "ValidationError"):
        schemas.pop(guessed, None)
    schemas["Error"] = _ERROR
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}, {}]
    error = {
        "description": "An error.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = error
    schema["paths"]["/v1/adapters"]["post"]["requestBody"] = form_schema()
    return schema
