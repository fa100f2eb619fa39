"""The server speaks TLS by itself, and nothing older than TLS 1.2."""

import datetime
import socket
import ssl
from contextlib import suppress
from ipaddress import ip_address

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate that signed itself, and its key: the paths of both."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return cert, private


@pytest.fixture(scope="module")
def over_tls(serve, certificate):
    cert, key = certificate
    return serve("https", tls_cert=str(cert), tls_key=str(key))


def speaking(certificate, version, ciphers=None):
    """A client's context for one version of TLS only."""
    context = ssl.create_default_context(cafile=certificate[0])
    context.set_ciphers(ciphers or "DEFAULT:@SECLEVEL=0")  # else the client itself would refuse the old versions
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.minimum_version = version
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_new_versions_are_spoken_and_promised(over_tls, certificate, version):
    context = speaking(certificate, version)
    await over_tls.ready(verify=context)
    async with httpx.AsyncClient(verify=context) as http:
        answer = await http.get(f"{over_tls.base}/fhir/metadata")
    assert answer.status_code == 200
    assert "strict-transport-security" in answer.headers


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_are_refused(over_tls, certificate, version):
    await over_tls.ready(verify=speaking(certificate, ssl.TLSVersion.TLSv1_3))
    with socket.create_connection(("127.0.0.1", over_tls.port), 10) as plain, pytest.raises(ssl.SSLError) as refused:
        speaking(certificate, version).wrap_socket(plain, server_hostname="127.0.0.1")
    assert refused.value.reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNEXPECTED_EOF_WHILE_READING"), "the server ended it"
    assert shaken(speaking(certificate, version), lenient(certificate)) == version.name.replace("v1_", "v1."), "the client would"


def lenient(certificate):
    """A server that speaks the old versions too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    return context


def shaken(client, server):
    """The version that two contexts agree on."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(back, there, server_hostname="127.0.0.1"), server.wrap_bio(there, back, server_side=True)]
    for _ in range(6):
        for side in sides:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return sides[0].version()


async def test_ciphers_without_forward_secrecy_are_refused(over_tls, certificate):
    await over_tls.ready(verify=speaking(certificate, ssl.TLSVersion.TLSv1_3))
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient(verify=speaking(certificate, ssl.TLSVersion.TLSv1_2, "ECDHE+AES+SHA384:!AESGCM")) as http:
            await http.get(f"{over_tls.base}/health/live")


async def test_plain_http_gets_no_answer_of_the_application(over_tls, certificate):
    await over_tls.ready(verify=speaking(certificate, ssl.TLSVersion.TLSv1_3))
    assert b"200" not in await over_tls.raw(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", seconds=5)
    await over_tls.ready(verify=speaking(certificate, ssl.TLSVersion.TLSv1_3))
