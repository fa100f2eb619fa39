"""The SMART authorization server (https://hl7.org/fhir/smart-app-launch)."""
