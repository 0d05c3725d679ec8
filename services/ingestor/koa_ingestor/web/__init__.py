"""The live night page: plain files to a browser, under a strict policy (docs/night-page.md)."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from ..errors import UnknownPage

router = APIRouter(include_in_schema=False)
FILES = {path.name: path for path in (Path(__file__).parent / "static").iterdir()}
# Nothing from elsewhere, nothing inline; no text becomes markup (Trusted Types).
POLICY = {
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self'",
    "img-src": "'self' blob:", "connect-src": "'self'", "base-uri": "'none'",
    "form-action": "'none'", "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'", "trusted-types": "'none'",
}  # fmt: skip
HEADERS = {
    # Asked about at each load (ETag): after an upgrade all modules are of one version.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.api_route("/", methods=["GET", "HEAD"])
@router.api_route("/web/{file}", methods=["GET", "HEAD"])
async def page(file: str = "index.html") -> FileResponse:
    """Answer with a file of the page; there are no others."""
    if file not in FILES:
        raise UnknownPage(f"the page has no file {file!r}")
    return FileResponse(FILES[file], headers=HEADERS)
