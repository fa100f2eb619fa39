"""$validate-code: whether a code belongs to a value set or to a code system, and whether its words are right.

https://hl7.org/fhir/R4/valueset-operation-validate-code.html and https://hl7.org/fhir/R4/codesystem-operation-validate-code.html
"""

from __future__ import annotations

from fhircm.fhir.terminology.library import Versions
from fhircm.fhir.terminology.validation import Asked, Verdict, any_of, in_code_system, in_value_set
from fhircm.operations.call import Answer, Call, parameters
from fhircm.operations.terms import artefact, code_system, codings, member, present, with_codes


async def validate_in_value_set(call: Call) -> Answer:
    """Check a code, a coding, or a concept of which one coding must pass."""
    asked = codings(call, version="systemVersion")
    library, value_set = await artefact(call, "ValueSet", "valueSet", "valueSetVersion")
    abstract, language = call.one("abstract", False), call.one("displayLanguage")

    def check(one: Asked) -> Verdict:
        versions = Versions(default={one.system: one.version} if one.system and one.version else {})
        members = call.store.expansion(library, value_set, versions, only=one.system).members
        system = library.code_system(one.system, one.version) if one.system else None
        return in_value_set(members, system, value_set.canonical, one, abstract=abstract, language=language)

    return _answer(any_of(asked, check))


async def validate_in_code_system(call: Call) -> Answer:
    """Check a code, a coding, or a concept of which one coding must pass."""
    asked = codings(call, system="url")
    if call.id or call.one("codeSystem") or call.one("url"):
        _, found = await artefact(call, "CodeSystem", "codeSystem", "version")
        system = with_codes(found)
        asked = [one._replace(system=None) for one in asked] if call.one("code") else asked
    else:
        first = next(iter(asked), Asked(None, None, "", None))
        system = await code_system(call, first.system, first.version)
    abstract, language = call.one("abstract", True), call.one("displayLanguage")
    return _answer(any_of(asked, lambda one: in_code_system(system, one, abstract=abstract, language=language)))


def _answer(verdict: Verdict) -> Answer:
    result = member("result", "boolean", verdict.result)
    return parameters(
        *present([result, member("message", "string", verdict.message), member("display", "string", verdict.display)])
    )
