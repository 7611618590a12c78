//! The socket's file: whose it is, and when it comes and goes.

use nbd::{ListenError, Listener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Barrier;

#[test]
fn the_file_is_the_users_alone_and_goes_with_the_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::unix(&path).unwrap();
    assert_eq!(listener.path(), Some(path.as_path()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_dead_servers_file_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _listener = Listener::unix(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_live_server_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::unix(&path).unwrap();
    let error = Listener::unix(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another server is listening"), "{error}");
    UnixStream::connect(&path).unwrap();
    drop(listener);
    Listener::unix(&path).unwrap();
}

#[test]
fn other_files_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, b"precious").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for path in [&path, &link, &directory.path().to_owned()] {
        let error = Listener::unix(path).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_file_that_took_our_place_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::unix(&path).unwrap();
    std::fs::rename(&path, directory.path().join("away")).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}

#[test]
fn impossible_paths_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().join("x".repeat(120)), directory.path().join("none/socket")] {
        let error = Listener::unix(&path).unwrap_err();
        assert!(matches!(error, ListenError::System { .. }), "{error}");
    }
}

#[test]
fn of_many_that_begin_at_once_one_listens() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let barrier = Barrier::new(8);
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        Listener::unix(&path)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(listeners.iter().filter(|listener| listener.is_ok()).count(), 1);
        UnixStream::connect(&path).unwrap();
    }
}
