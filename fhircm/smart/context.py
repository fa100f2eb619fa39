"""What an app is told with its token.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#launch-context-arrives-with-your-access_token, and `appContext` of
https://hl7.org/fhir/smart-app-launch/task-launch.html
"""

from __future__ import annotations

TOLD = (
    "patient",
    "encounter",
    "fhirContext",
    "need_patient_banner",
    "intent",
    "smart_style_url",
    "tenant",
    "appContext",
)
