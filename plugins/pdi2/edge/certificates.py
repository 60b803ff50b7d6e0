"""Writes the certificate where the operator wants it."""

import logging
from typing import Any

from airflow.sdk import ObjectStoragePath

from pdi2.core.engines.failures import MigrationError, describe
from pdi2.core.report import certificate
from pdi2.core.state.ledger import Ledger
from pdi2.edge import configuration

log = logging.getLogger(__name__)


def write(ledger: Ledger, report: dict[str, Any]) -> None:
    """Writes two files, and records an event that names them. Raises MigrationError if they cannot be written."""
    drawn_up = certificate.draw_up(ledger, report)
    ledger.keep_certificate(drawn_up.files)
    place = configuration.certificates()
    try:
        folder = ObjectStoragePath(place)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in drawn_up.files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except Exception as error:
        raise MigrationError(
            f"The certificate could not be written to {place}: {describe(error)}. The migration is not touched by "
            "this, and the same facts are in the ledger. Correct [pdi2] certificates (AIRFLOW__PDI2__CERTIFICATES) or "
            "what keeps Airflow from writing there, then clear this task: it writes the certificate again."
        ) from error
    ledger.record("certificate_written", place=place, files=list(drawn_up.files), json_sha256=drawn_up.json_sha256)
    log.info("The certificate is in %s: %s", place, ", ".join(drawn_up.files))
