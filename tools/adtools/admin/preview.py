"""A creative as visitors will see it: the document that servers send for a frame, of what is stored or just written.

It is an advertiser's markup: its own policy puts it into an origin of nobody, and its links lead nowhere.
"""

from __future__ import annotations

from base64 import b64encode
from typing import cast

import msgspec
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.clickjacking import xframe_options_sameorigin
from django.views.decorators.http import require_http_methods

from adcore.core.inventory import Creative as CheckedCreative
from adcore.core.inventory import Placement as CheckedPlacement
from adcore.render import CompiledDecision
from adtools.admin import documents
from adtools.admin.forms import CreativeForm, uploaded_image
from adtools.admin.images import ImageError
from adtools.admin.models import Creative
from adtools.admin.security import HEADER

# RFC 2606: resolves nowhere, so that a preview counts nothing anywhere.
NOWHERE = "https://preview.invalid"


@xframe_options_sameorigin
@require_http_methods(["GET", "POST"])
def preview_view(request: HttpRequest) -> HttpResponse:
    """`?creative=ID`, or a form with the fields of one creative."""
    if not cast("User", request.user).has_perm("adcore.view_creative"):
        raise PermissionDenied
    if request.method == "GET":
        stored = Creative.objects.filter(pk=request.GET.get("creative", "")).first()
        if stored is None:
            raise Http404("there is no such creative")
        return show(request, stored.document(), "")
    fields = {name: request.POST.get(name, "") for name in CreativeForm.base_fields}
    document = documents.creative_document({**fields, "id": "preview", "weight": "1"})
    upload, picture = request.FILES.get("upload"), ""
    if upload is not None:
        try:
            image = uploaded_image(upload, fields["size"])
        except ImageError as error:
            return _refuse(request, [str(error)])
        document["image_url"] = "https://preview.invalid/upload"
        picture = f"data:{image.content_type};base64,{b64encode(image.content).decode()}"
    return show(request, document, picture)


def show(request: HttpRequest, document: dict[str, object], picture: str) -> HttpResponse:
    """The frame of a creative's document, with `picture` for its image if that is not anywhere yet."""
    campaign = {"id": "preview", "name": "preview", "priority": "house", "creatives": [document]}
    checked, faults = documents.check_campaign([], campaign)
    if checked is None:
        return _refuse(request, [f"{fault.field}: {fault.message}" for fault in faults])
    (creative,) = checked.creatives
    if picture:
        creative = msgspec.structs.replace(creative, image_url=picture)
    return _frame(creative)


def _frame(creative: CheckedCreative) -> HttpResponse:
    width, height = creative.placement_size
    decision = CompiledDecision(
        CheckedPlacement(id="preview", width=width, height=height), "preview", creative, NOWHERE
    )
    response = HttpResponse(decision.frame(b"0" * 32, b"preview"))
    policy = dict(decision.frame_headers)[HEADER].replace("frame-ancestors *", "frame-ancestors 'self'")
    response.headers[HEADER] = policy if "sandbox" in policy else f"sandbox; {policy}"
    return response


def _refuse(request: HttpRequest, messages: list[str]) -> HttpResponse:
    response = render(request, "adtools/no_preview.html", {"messages": messages})
    response.headers[HEADER] = "sandbox; default-src 'none'; frame-ancestors 'self'"
    return response
