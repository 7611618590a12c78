//! The control socket and the signals: who may come in, and when the daemon ends.

use super::connection;
use super::desk::{say, Desk};
use super::protocol::CONNECTIONS;
use crate::error::Error;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::signal::unix::{signal, SignalKind};

/// How long to wait after accept() failed: usually the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// At the end, clients have this long to take their last line.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Clients that are connected.
#[derive(Clone, Default)]
pub struct Clients(Arc<AtomicUsize>);

/// A client's place; given back when it is dropped.
struct Place(Arc<AtomicUsize>);

impl Clients {
    fn enter(&self) -> Option<Place> {
        let place = Place(Arc::clone(&self.0));
        // Counted before it is looked at: the place gives itself back.
        (self.0.fetch_add(1, Ordering::AcqRel) < CONNECTIONS).then_some(place)
    }

    /// Waits until they are all gone, for a while.
    pub fn wait(&self) {
        let begun = Instant::now();
        while self.0.load(Ordering::Acquire) > 0 && begun.elapsed() < LAST_LINES {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Takes in clients on a thread of its own, and ends the daemon at the first SIGINT or SIGTERM. From the return on
/// a signal doesn't kill, but the second: whoever can't wait for a rollback's end may have its unclean one.
pub fn start(listener: &nbd::Listener, desk: &Arc<Desk>) -> Result<Clients, Error> {
    let failed = |e: std::io::Error| Error::Failed(format!("preparing the control socket: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let socket = UnixListener::from(listener.as_fd().try_clone_to_owned().map_err(failed)?);
    let socket = tokio::net::UnixListener::from_std(socket).map_err(failed)?;
    drop(guard);
    let (desk, clients) = (Arc::clone(desk), Clients::default());
    let count = clients.clone();
    let take_in = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    accepted = socket.accept() => match accepted {
                        Ok((client, _)) => take(client, &desk, &count),
                        Err(error) => {
                            say(format_args!("control socket: taking in a client: {error}"));
                            thread::sleep(ACCEPT_PAUSE);
                        }
                    },
                    _ = interrupt.recv() => stop(&desk),
                    _ = terminate.recv() => stop(&desk),
                }
            }
        })
    };
    let thread = thread::Builder::new().name("control".into());
    thread.spawn(take_in).map(|_| clients).map_err(failed)
}

fn stop(desk: &Desk) {
    if desk.end() {
        if let Some(running) = desk.activity.running() {
            say(format_args!("{}: ending; first, {} is settled", desk.name.display(), running.what));
        }
        return;
    }
    say(format_args!("{}: ended by a second signal, and not in order", desk.name.display()));
    std::process::exit(1);
}

/// Checks who it is, and gives it a thread.
fn take(client: tokio::net::UnixStream, desk: &Arc<Desk>, clients: &Clients) {
    let who = client.peer_cred().map(|who| who.uid());
    // From here on it is the thread's, which waits.
    let prepared = client.into_std().and_then(|client| client.set_nonblocking(false).map(|()| client));
    let client: UnixStream = match prepared {
        Ok(client) => client,
        Err(error) => return say(format_args!("control socket: {error}")),
    };
    let own = rustix::process::geteuid().as_raw();
    if !who.is_ok_and(|who| may_ask(who, own)) {
        return connection::refuse(client, "only the user whose daemon this is may ask it, and root");
    }
    let Some(place) = clients.enter() else {
        let why = format!("{CONNECTIONS} clients are connected, as many as may be; try again later");
        return connection::refuse(client, &why);
    };
    let desk = Arc::clone(desk);
    let serve = move || {
        let client = connection::serve(client, &desk);
        // Before it is closed: who sees that may come again at once.
        drop(place);
        drop(client);
    };
    if let Err(error) = thread::Builder::new().name("client".into()).spawn(serve) {
        say(format_args!("control socket: starting a client's thread: {error}"));
    }
}

/// The socket's mode says the same, unless somebody has changed it.
fn may_ask(who: u32, own: u32) -> bool {
    who == own || who == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_ask() {
        assert!(may_ask(1000, 1000) && may_ask(0, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(1000, 0));
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let clients = Clients::default();
        let places: Vec<Place> = (0..CONNECTIONS).map(|_| clients.enter().unwrap()).collect();
        assert!(clients.enter().is_none() && clients.enter().is_none());
        drop(places);
        assert!(clients.enter().is_some());
    }
}
