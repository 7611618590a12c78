//! TCP and TLS: what may be served where, and that nothing is told or taken in clear.

mod certificates;
mod memory;

use certificates::Authority;
use memory::{eventually, seed, Memory, Server};
use nbd::{Limits, ListenError, Listener, Tls};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: usize = 4 << 20;
const EXPORT_NAME: u32 = 1;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const ACK: u32 = 1;
const TLS_REQUIRED: u32 = (1 << 31) + 5;
const UNSUPPORTED: u32 = (1 << 31) + 1;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;

/// The handshake's first bytes.
fn greet(stream: &mut impl ReadWrite) {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&3u32.to_be_bytes()).unwrap();
}

trait ReadWrite: Read + Write {}
impl<S: Read + Write> ReadWrite for S {}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT".as_slice(), &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Kind and text of an answer.
fn answer(stream: &mut impl ReadWrite) -> std::io::Result<(u32, Vec<u8>)> {
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    let mut data = vec![0; number(16) as usize];
    stream.read_exact(&mut data)?;
    Ok((number(12), data))
}

fn choose(stream: &mut impl ReadWrite) {
    stream.write_all(&option(EXPORT_NAME, b"disk")).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(u64::from_be_bytes(reply[..8].try_into().unwrap()), BYTES as u64);
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0];
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn reply(stream: &mut impl ReadWrite) -> u64 {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    u64::from_be_bytes(head[8..].try_into().unwrap())
}

fn port(tls: Option<Tls>) -> (Listener, SocketAddr) {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), tls).unwrap();
    let address = listener.address().unwrap();
    (listener, address)
}

fn serving(limits: Limits, verify: bool) -> (Server, SocketAddr, Authority, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    authority.fill(folder.path());
    let (listener, address) = port(Some(Tls::from_folder(folder.path(), verify).unwrap()));
    let memory = Arc::new(Memory::new("disk", vec![0; BYTES]));
    (Server::start_beside(&[&memory], limits, Some(listener)), address, authority, folder)
}

/// A client whose TLS is about to begin; `own`: with this certificate and key.
fn client(
    address: SocketAddr,
    authority: &Authority,
    own: Option<(String, String)>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    greet(&mut stream);
    stream.write_all(&option(STARTTLS, &[])).unwrap();
    assert_eq!(answer(&mut stream).unwrap().0, ACK);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    let session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    StreamOwned::new(session, stream)
}

#[test]
fn what_goes_through_tls_is_what_was_sent() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let (mut server, address, authority, _folder) = serving(Limits::default(), false);
    let mut stream = client(address, &authority, None);
    choose(&mut stream);
    let mut model = vec![0; BYTES];
    for round in 0..60 {
        // Many small ones at once, or a few large.
        let (count, most): (u64, usize) = if round % 3 == 0 { (3, 1 << 20) } else { (40, 9000) };
        let mut sent = Vec::new();
        // Side by side: they may be done in any order.
        let begin = random.random_range(0..=BYTES - count as usize * most);
        for cookie in 0..count {
            let length = random.random_range(1..=most);
            let offset = begin + cookie as usize * most;
            let mut data = vec![0; length];
            random.fill_bytes(&mut data);
            model[offset..offset + length].copy_from_slice(&data);
            sent.extend(request(WRITE, cookie, offset as u64, length as u32));
            sent.extend(&data);
            if most > 9000 || cookie == count - 1 {
                stream.write_all(&std::mem::take(&mut sent)).unwrap();
            }
        }
        let mut cookies: Vec<u64> = (0..count).map(|_| reply(&mut stream)).collect();
        cookies.sort();
        assert_eq!(cookies, (0..count).collect::<Vec<_>>());
        let length = random.random_range(1..=1 << 20);
        let offset = random.random_range(0..=BYTES - length);
        stream.write_all(&request(READ, 7, offset as u64, length as u32)).unwrap();
        assert_eq!(reply(&mut stream), 7);
        let mut read = vec![0; length];
        stream.read_exact(&mut read).unwrap();
        assert!(read == model[offset..offset + length], "round {round}");
    }
    stream.write_all(&request(DISC, 0, 0, 0)).unwrap();
    eventually("it has said goodbye", || server.ended("disconnected") == 1);
    // A stop ends those who stay, too.
    let mut stays = client(address, &authority, None);
    choose(&mut stays);
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(stays.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn a_client_that_fetches_nothing_is_left_behind_at_a_stop() {
    let (mut server, address, authority, _folder) = serving(Limits::default(), false);
    let mut stream = client(address, &authority, None);
    choose(&mut stream);
    for cookie in 0..64 {
        stream.write_all(&request(READ, cookie, 0, BYTES as u32)).unwrap();
    }
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

#[test]
fn nothing_is_told_without_tls() {
    let (server, address, _authority, _folder) = serving(Limits::default(), false);
    let mut stream = TcpStream::connect(address).unwrap();
    greet(&mut stream);
    stream.write_all(&option(LIST, &[])).unwrap();
    let (kind, text) = answer(&mut stream).unwrap();
    assert_eq!(kind, TLS_REQUIRED, "{}", String::from_utf8_lossy(&text));
    stream.write_all(&option(EXPORT_NAME, b"disk")).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    eventually("it is ended", || server.ended("without TLS") == 1);
    // Who sends on without waiting could have had it put in by somebody in between.
    let mut stream = TcpStream::connect(address).unwrap();
    greet(&mut stream);
    stream.write_all(&[option(STARTTLS, &[]), option(LIST, &[])].concat()).unwrap();
    assert_eq!(answer(&mut stream).unwrap().0, ACK);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.windows(4).any(|window| window == b"disk"));
    eventually("it is ended", || server.ended("TLS: ") == 1);
}

#[test]
fn only_known_clients_where_they_are_verified() {
    let (server, address, authority, _folder) = serving(Limits::default(), true);
    let known = authority.issue("somebody", ExtendedKeyUsagePurpose::ClientAuth);
    let mut stream = client(address, &authority, Some(known));
    choose(&mut stream);
    let stranger = Authority::new("another").issue("somebody", ExtendedKeyUsagePurpose::ClientAuth);
    for (count, own) in [None, Some(stranger)].into_iter().enumerate() {
        let mut stream = client(address, &authority, own);
        // With TLS 1.3 a client hears of it only behind the handshake.
        let told = stream.write_all(&option(LIST, &[])).and_then(|()| answer(&mut stream));
        assert!(told.is_err(), "{told:?}");
        eventually("it is refused", || server.ended("TLS: ") == count + 1);
    }
    choose_again(&mut stream);
}

fn choose_again(stream: &mut impl ReadWrite) {
    stream.write_all(&request(READ, 1, 0, 1)).unwrap();
    assert_eq!(reply(stream), 1);
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn who_never_ends_the_handshake_is_ended() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let (server, address, authority, _folder) = serving(limits, false);
    let stream = client(address, &authority, None);
    eventually("its time is over", || server.ended("not done in time") == 1);
    drop(stream);
    // One that vanishes in the middle is, too.
    drop(client(address, &authority, None));
    eventually("it is gone", || server.ended("closed") == 1);
}

#[test]
fn clear_text_only_on_this_machine() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error = Listener::tcp(address.parse().unwrap(), None).unwrap_err();
        assert!(matches!(error, ListenError::NeedsTls { .. }), "{error}");
    }
    let (listener, address) = port(None);
    assert_eq!(listener.uri("disk"), format!("nbd://{address}/disk"));
    let taken = Listener::tcp(address, None).unwrap_err();
    assert!(taken.to_string().contains("cannot bind"), "{taken}");
    let memory = Arc::new(Memory::new("disk", vec![7; BYTES]));
    let _server = Server::start_beside(&[&memory], Limits::default(), Some(listener));
    let mut stream = TcpStream::connect(address).unwrap();
    greet(&mut stream);
    stream.write_all(&option(STARTTLS, &[])).unwrap();
    assert_eq!(answer(&mut stream).unwrap().0, UNSUPPORTED);
    choose(&mut stream);
    choose_again(&mut stream);
}

#[test]
fn certificates_that_are_no_good_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let told = |folder: &Path, verify| Tls::from_folder(folder, verify).unwrap_err().to_string();
    assert!(told(folder.path(), false).contains("server-cert.pem: "));
    let authority = Authority::new("authority");
    authority.fill(folder.path());
    let other = Authority::new("other").issue("server", ExtendedKeyUsagePurpose::ServerAuth);
    std::fs::write(folder.path().join("server-key.pem"), other.1).unwrap();
    let error = told(folder.path(), false);
    assert!(error.contains("server-cert.pem: ") && error.contains("server-key.pem"), "{error}");
    authority.fill(folder.path());
    std::fs::write(folder.path().join("ca-cert.pem"), "nothing\n").unwrap();
    assert!(told(folder.path(), true).contains("ca-cert.pem: there is no certificate in it"));
    std::fs::write(folder.path().join("server-cert.pem"), "").unwrap();
    assert!(told(folder.path(), false).contains("server-cert.pem: there is no certificate in it"));
}
