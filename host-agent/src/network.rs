//! Where `serve` and `image serve` let clients in: a Unix socket, a TCP port, or both.

use crate::error::Error;
use clap::Args;
use nbd::{Listener, Tls};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The arguments for it.
#[derive(Clone, Debug, Args)]
pub struct NetworkArguments {
    /// The Unix socket to serve on; only this user may connect
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The TCP address to serve on, beside the socket or instead: 127.0.0.1:10809. An address that other machines reach
    /// needs --tls-certificates
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Folder with server-cert.pem and server-key.pem, as for nbdkit and QEMU: clients of --listen have to use TLS
    #[arg(long, value_name = "FOLDER", requires = "listen")]
    pub tls_certificates: Option<PathBuf>,
    /// Take only clients with a certificate by ca-cert.pem of that folder
    #[arg(long, requires = "tls_certificates")]
    pub tls_verify_peer: bool,
}

impl NetworkArguments {
    /// Says whether anything is.
    pub fn is_given(&self) -> bool {
        self.socket.is_some() || self.listen.is_some()
    }

    /// Listens. Certificates are read now; new ones count from the next start on.
    pub fn listen(&self) -> Result<Vec<Listener>, Error> {
        if !self.is_given() {
            return Err(Error::Misuse(
                "give --socket PATH, or --listen ADDRESS:PORT, or both: where clients come in".into(),
            ));
        }
        let folder = self.tls_certificates.as_ref();
        let tls = folder.map(|folder| Tls::from_folder(folder, self.tls_verify_peer)).transpose();
        let tls = tls.map_err(|error| Error::Failed(format!("--tls-certificates: {error}")))?;
        let mut listeners = Vec::new();
        if let Some(path) = &self.socket {
            listeners.push(Listener::unix(path)?);
        }
        if let Some(address) = self.listen {
            listeners.push(Listener::tcp(address, tls)?);
        }
        Ok(listeners)
    }
}

/// How clients name an export, everywhere that it is served.
pub fn uris(listeners: &[Listener], export: &str) -> String {
    listeners.iter().map(|listener| listener.uri(export)).collect::<Vec<_>>().join(" and ")
}
