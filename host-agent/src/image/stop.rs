//! SIGINT and SIGTERM end a server in order.

use crate::error::Error;
use tokio::signal::unix::{signal, SignalKind};

/// Requests `shutdown` at the first SIGINT or SIGTERM.
pub fn on_signal(shutdown: nbd::Shutdown) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::Failed(format!("waiting for signals: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    // Here and not in the thread: from the return on a signal must not kill.
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    drop(guard);
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        shutdown.request();
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop).map_err(failed)
}
