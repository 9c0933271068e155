//! Setting a network up: the order of the effects, each with its entry in the ledger.

use std::path::PathBuf;
use std::sync::Arc;

use sandbox_model::device::NetworkDevice;
use sandbox_model::ledger::{HostObject, Identity, Journal, Scope};
use sandbox_model::network::IpNet;
use sandbox_model::{ErrorKind, Instant, PassedFd, PortError, PortResult};

use crate::endpoints::{self, Endpoint};
use crate::host::{
    CreateFile, CreateNamespace, CreateTap, Inode, OpenNamespace, OpenedNamespace, Redirect, RemoveRedirect, RemoveTap,
    Want,
};
use crate::own::{self, OwnPlan};
use crate::serve::Held;
use crate::{Mark, NetworkError, NetworkHost, NetworkIsUp};

/// A request that makes sense.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Taps beside the links of somebody's namespace.
    Pod {
        /// Its file.
        path: PathBuf,
        /// Queue pairs of each tap.
        queue_pairs: u16,
    },
    /// A namespace of our own.
    Own {
        /// Where it is bound to.
        path: PathBuf,
        /// Queue pairs of its tap.
        queue_pairs: u16,
        /// Addresses and what the guest is told.
        plan: OwnPlan,
    },
}

pub(crate) struct SetUp {
    pub(crate) journal: Journal,
    pub(crate) host: Arc<dyn NetworkHost>,
    pub(crate) mark: Mark,
    pub(crate) deadline: Instant,
}

impl SetUp {
    /// Makes what `wish` says. `held` is filled as soon as there is something to hold, so that it
    /// survives a failure of a later effect.
    pub(crate) async fn run(self, wish: Wish, held: &mut Option<Held>) -> Result<NetworkIsUp, NetworkError> {
        match wish {
            Wish::Pod { path, queue_pairs } => self.pod(path, queue_pairs, held).await,
            Wish::Own { path, queue_pairs, plan } => self.own(path, queue_pairs, plan, held).await,
        }
    }

    async fn pod(&self, path: PathBuf, queue_pairs: u16, held: &mut Option<Held>) -> Result<NetworkIsUp, NetworkError> {
        let open = OpenNamespace { path: path.clone(), want: Want::Endpoints { queue_pairs } };
        let opened = self.host.open_namespace(open, self.deadline).await.map_err(|error| match error.kind {
            ErrorKind::Invalid => NetworkError::NotANamespace { path: path.clone(), reason: error.cause },
            _ => NetworkError::Host(error),
        })?;
        let plan = endpoints::plan(&opened.view, &self.mark.alias)?;
        let held = hold(held, path, queue_pairs, &opened);
        let mut queues = opened.tuns.chunks(usize::from(queue_pairs));
        let mut nics = Vec::new();
        for endpoint in &plan.endpoints {
            nics.push(self.attach(held, endpoint, queues.next().unwrap_or_default()).await?);
        }
        Ok(NetworkIsUp { nics, guest: plan.guest, skipped: plan.skipped })
    }

    /// Puts a tap beside a link and redirects both ways.
    async fn attach(&self, held: &Held, endpoint: &Endpoint, queues: &[PassedFd]) -> PortResult<NetworkDevice> {
        self.replace_leftovers(held, endpoint).await?;
        let (link, tap) = (&endpoint.link, &endpoint.tap);
        let tap_index = self.tap(held, tap, link.mtu, queues, Vec::new()).await?;
        let object = HostObject::IngressQdisc { namespace: held.path.clone(), link: link.name.clone() };
        let redirect = Redirect {
            socket: held.socket.clone(),
            namespace_inode: held.inode,
            link: link.name.clone(),
            link_index: link.index,
            tap_index,
            mark: self.mark.clone(),
        };
        let identity = Identity::Link { index: link.index, namespace_inode: held.inode };
        self.journal
            .make(Scope::Sandbox, object, |_| async {
                self.host.redirect(redirect, self.deadline).await?;
                Ok(((), identity))
            })
            .await?;
        Ok(nic(tap, queues, endpoint.mac, link.mtu))
    }

    /// Takes away what an earlier run of this sandbox left. A stranger's objects are an error.
    async fn replace_leftovers(&self, held: &Held, endpoint: &Endpoint) -> PortResult<()> {
        if endpoint.link.has_ingress {
            let remove = RemoveRedirect {
                socket: held.socket.clone(),
                namespace_inode: held.inode,
                link: endpoint.link.name.clone(),
                index: None,
                mark: self.mark.clone(),
            };
            gone(self.host.remove_redirect(remove, self.deadline).await)?;
        }
        if endpoint.has_leftover {
            let remove = RemoveTap {
                socket: held.socket.clone(),
                namespace_inode: held.inode,
                name: endpoint.tap.clone(),
                alias: self.mark.alias.clone(),
                index: None,
                queues: Vec::new(),
            };
            gone(self.host.remove_tap(remove, self.deadline).await)?;
        }
        Ok(())
    }

    async fn own(
        &self,
        path: PathBuf,
        queue_pairs: u16,
        plan: OwnPlan,
        held: &mut Option<Held>,
    ) -> Result<NetworkIsUp, NetworkError> {
        let file = HostObject::File { path: path.clone() };
        self.journal
            .make(Scope::Sandbox, file, |_| async {
                let made = self.host.create_file(CreateFile { path: path.clone() }, self.deadline).await?;
                Ok(((), inode(made)))
            })
            .await?;
        let (_, opened) = self
            .journal
            .make(Scope::Sandbox, HostObject::NetNamespace { path: path.clone() }, |_| async {
                let create = CreateNamespace { path: path.clone(), tuns: queue_pairs };
                let opened = self.host.create_namespace(create, self.deadline).await?;
                let identity = inode(opened.identity);
                Ok((opened, identity))
            })
            .await?;
        let held = hold(held, path.clone(), queue_pairs, &opened);
        let tap = endpoints::tap_name(0);
        self.tap(held, &tap, own::MTU, &opened.tuns, plan.gateways).await?;
        let nics = vec![nic(&tap, &opened.tuns, plan.mac, own::MTU)];
        Ok(NetworkIsUp { nics, guest: plan.guest, skipped: Vec::new() })
    }

    /// Makes a tap and returns its index.
    async fn tap(
        &self,
        held: &Held,
        name: &str,
        mtu: u32,
        queues: &[PassedFd],
        addresses: Vec<IpNet>,
    ) -> PortResult<u32> {
        let object =
            HostObject::Tap { namespace: held.path.clone(), name: name.to_owned(), alias: self.mark.alias.clone() };
        let create = CreateTap {
            socket: held.socket.clone(),
            namespace_inode: held.inode,
            queues: queues.to_vec(),
            name: name.to_owned(),
            alias: self.mark.alias.clone(),
            mtu,
            addresses,
        };
        let (_, index) = self
            .journal
            .make(Scope::Sandbox, object, |_| async {
                let index = self.host.create_tap(create, self.deadline).await?;
                Ok((index, Identity::Link { index, namespace_inode: held.inode }))
            })
            .await?;
        Ok(index)
    }
}

fn hold<'a>(held: &'a mut Option<Held>, path: PathBuf, queue_pairs: u16, opened: &OpenedNamespace) -> &'a Held {
    held.insert(Held {
        path,
        inode: opened.identity.inode,
        socket: opened.socket.clone(),
        tuns: opened.tuns.clone(),
        queue_pairs: usize::from(queue_pairs),
    })
}

fn nic(tap: &str, queues: &[PassedFd], mac: sandbox_model::network::MacAddress, mtu: u32) -> NetworkDevice {
    let queue_pairs = u16::try_from(queues.len()).unwrap_or(u16::MAX);
    NetworkDevice { tap: tap.to_owned(), queues: queues.to_vec(), queue_pairs, mac, mtu }
}

fn inode(Inode { device, inode }: Inode) -> Identity {
    Identity::Inode { device, inode }
}

fn gone(removed: Result<(), PortError>) -> PortResult<()> {
    removed.or_else(|error| if error.is_absent() { Ok(()) } else { Err(error) })
}
