"""The API described: an OpenAPI document, and a page that shows it. Made from the checks that requests go through."""

from cluster.api.document.routes import document_routes

__all__ = ["document_routes"]
