//! The simulated kernel's network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use network_actor::NetworkHost;
use network_actor::endpoints;
use network_actor::host::{
    CreateFile, CreateNamespace, CreateTap, Inode, OpenNamespace, OpenedNamespace, Redirect, RemoveFile,
    RemoveNamespace, RemoveRedirect, RemoveTap, Want,
};
use network_actor::view::{Address, Link, NamespaceView, Route};
use sandbox_model::network::{IpNet, MacAddress};
use sandbox_model::{ErrorKind, Instant, PassedFd, PortError, PortResult};

use crate::World;

const NAMESPACE: &str = "netns";
const FILE: &str = "file";
const TAP: &str = "tap";
/// A tap's mark is an object of its own, named after tap and mark.
const TAP_ALIAS: &str = "tap-alias";
const QDISC: &str = "qdisc";
const QDISC_COOKIE: &str = "qdisc-cookie";
/// Below are the indexes of links that a pod has from outside.
const FIRST_INDEX: u32 = 1000;

/// A network whose links, qdiscs and namespaces are objects of a [`World`].
///
/// Taps do not die with their descriptors, since there are none: as if a VMM held them.
#[derive(Debug, Clone)]
pub struct SimulatedNetwork {
    world: Arc<World>,
    pods: BTreeMap<PathBuf, NamespaceView>,
}

impl SimulatedNetwork {
    /// A kernel with no namespace but its own.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, pods: BTreeMap::new() }
    }

    /// Adds a namespace that somebody has made and filled with what `view` shows.
    ///
    /// # Errors
    /// `Exists`: there is one at that path.
    pub fn with_pod(mut self, path: impl Into<PathBuf>, view: NamespaceView) -> PortResult<Self> {
        self.add_pod(path.into(), view)?;
        Ok(self)
    }

    /// Likewise.
    pub(crate) fn add_pod(&mut self, path: PathBuf, view: NamespaceView) -> PortResult<()> {
        self.world.make("ip netns add", NAMESPACE, shown(&path))?;
        self.pods.insert(path, view);
        Ok(())
    }

    /// What CNI's `ptp` plugin leaves in a pod: `eth0` with `address` and a default route.
    pub fn pod_view(address: IpNet, gateway: std::net::IpAddr) -> NamespaceView {
        let lo = Link { index: 1, name: "lo".to_owned(), mtu: 65536, flags: 0x49, ..Link::default() };
        let eth0 = Link {
            index: 2,
            name: "eth0".to_owned(),
            kind: Some("veth".to_owned()),
            mac: Some(MacAddress([0x02, 0, 0, 0, 0, 0x02])),
            mtu: 1500,
            flags: 0x43,
            ..Link::default()
        };
        let default = Route {
            link: 2,
            destination: None,
            gateway: Some(gateway),
            source: None,
            scope: 0,
            is_ipv6: gateway.is_ipv6(),
            flags: 0,
            mtu: 0,
        };
        NamespaceView {
            links: vec![lo, eth0],
            addresses: vec![Address { link: 2, net: address }],
            routes: vec![default],
            ..NamespaceView::default()
        }
    }

    /// What was there from outside, and what has been made since.
    fn view(&self, path: &Path, inode: u64) -> NamespaceView {
        let mut view = self.pods.get(path).cloned().unwrap_or_default();
        for link in &mut view.links {
            link.has_ingress |= self.world.identity(QDISC, &below(inode, &link.name)).is_some();
        }
        let prefix = below(inode, "");
        for marked in self.world.names_below(TAP_ALIAS, &prefix) {
            let Some((name, alias)) = marked.strip_prefix(&prefix).and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            view.links.push(Link {
                index: self.tap_index(inode, name).unwrap_or_default(),
                name: name.to_owned(),
                kind: Some("tun".to_owned()),
                alias: Some(alias.to_owned()),
                ..Link::default()
            });
        }
        view
    }

    fn tap_index(&self, inode: u64, name: &str) -> Option<u32> {
        let identity = self.world.identity(TAP, &below(inode, name))?;
        u32::try_from(identity).ok()?.checked_add(FIRST_INDEX)
    }

    /// A link that was there from outside.
    fn stranger(&self, inode: u64, name: &str) -> Option<&Link> {
        let is_it = |path: &Path| self.world.identity(NAMESPACE, &shown(path)) == Some(inode);
        let (_, view) = self.pods.iter().find(|(path, _)| is_it(path))?;
        view.links.iter().find(|link| link.name == name)
    }
}

#[sandbox_model::port::async_trait]
impl NetworkHost for SimulatedNetwork {
    async fn open_namespace(&self, request: OpenNamespace, _: Instant) -> PortResult<OpenedNamespace> {
        let path = shown(&request.path);
        let Some(inode) = self.world.identity(NAMESPACE, &path) else {
            let kind = match self.world.identity(FILE, &path) {
                Some(_) => ErrorKind::Invalid,
                None => ErrorKind::NotFound,
            };
            return Err(PortError::new(kind, "setns", path, "simulated: no namespace"));
        };
        let mut opened = OpenedNamespace { identity: Inode { device: 0, inode }, ..OpenedNamespace::default() };
        if request.want != Want::Socket {
            opened.view = self.view(&request.path, inode);
        }
        if let Want::Endpoints { queue_pairs } = request.want {
            let taps = endpoints::usable(&opened.view, &mut Vec::new()).len();
            opened.tuns = vec![PassedFd::absent(); taps * usize::from(queue_pairs)];
        }
        Ok(opened)
    }

    async fn create_file(&self, request: CreateFile, _: Instant) -> PortResult<Inode> {
        let inode = self.world.make("open(O_CREAT|O_EXCL)", FILE, shown(&request.path))?;
        Ok(Inode { device: 0, inode })
    }

    async fn create_namespace(&self, request: CreateNamespace, _: Instant) -> PortResult<OpenedNamespace> {
        let path = shown(&request.path);
        if self.world.identity(FILE, &path).is_none() {
            return Err(PortError::new(ErrorKind::NotFound, "mount --bind", path, "simulated: no such file"));
        }
        let inode = self.world.make("mount --bind", NAMESPACE, path)?;
        Ok(OpenedNamespace {
            identity: Inode { device: 0, inode },
            tuns: vec![PassedFd::absent(); usize::from(request.tuns)],
            ..OpenedNamespace::default()
        })
    }

    async fn create_tap(&self, request: CreateTap, _: Instant) -> PortResult<u32> {
        let CreateTap { namespace_inode: inode, name, alias, .. } = request;
        if self.stranger(inode, &name).is_some() {
            return Err(PortError::new(ErrorKind::Exists, "TUNSETIFF", name, "simulated: exists"));
        }
        self.world.make("TUNSETIFF", TAP, below(inode, &name))?;
        self.world.make("ip link set alias", TAP_ALIAS, marked(inode, &name, &alias))?;
        self.tap_index(inode, &name)
            .ok_or_else(|| PortError::new(ErrorKind::Refused, "RTM_GETLINK", name, "simulated: no index left"))
    }

    async fn redirect(&self, request: Redirect, _: Instant) -> PortResult<()> {
        let Redirect { namespace_inode: inode, link, mark, .. } = request;
        if self.stranger(inode, &link).is_some_and(|link| link.has_ingress) {
            return Err(PortError::new(ErrorKind::Exists, "qdisc add ingress", link, "simulated: exists"));
        }
        self.world.make("qdisc add ingress", QDISC, below(inode, &link))?;
        self.world.make("filter add", QDISC_COOKIE, marked(inode, &link, &mark.alias)).map(drop)
    }

    async fn remove_tap(&self, request: RemoveTap, _: Instant) -> PortResult<()> {
        let operation = "RTM_DELLINK";
        let RemoveTap { namespace_inode: inode, name, alias, index, .. } = request;
        let (tap, mark) = (below(inode, &name), marked(inode, &name, &alias));
        let is_anyones = self.stranger(inode, &name).is_some() || self.world.identity(TAP, &tap).is_some();
        if is_anyones && self.world.identity(TAP_ALIAS, &mark).is_none() {
            return Err(PortError::new(ErrorKind::Foreign, operation, name, "simulated: not ours"));
        }
        if index.is_some() && index != self.tap_index(inode, &name) {
            return Err(PortError::new(ErrorKind::NotFound, operation, name, "simulated: a later one"));
        }
        self.world.remove(operation, TAP, &tap)?;
        self.world.remove(operation, TAP_ALIAS, &mark)
    }

    async fn remove_redirect(&self, request: RemoveRedirect, _: Instant) -> PortResult<()> {
        let operation = "RTM_DELQDISC";
        let RemoveRedirect { namespace_inode: inode, link, mark, .. } = request;
        let (qdisc, cookie) = (below(inode, &link), marked(inode, &link, &mark.alias));
        let is_strangers = self.stranger(inode, &link).is_some_and(|link| link.has_ingress);
        let exists = self.world.identity(QDISC, &qdisc).is_some();
        if is_strangers || (exists && self.world.identity(QDISC_COOKIE, &cookie).is_none()) {
            return Err(PortError::new(ErrorKind::Foreign, operation, link, "simulated: not ours"));
        }
        self.world.remove(operation, QDISC, &qdisc)?;
        self.world.remove(operation, QDISC_COOKIE, &cookie)
    }

    async fn remove_namespace(&self, request: RemoveNamespace, _: Instant) -> PortResult<()> {
        let path = shown(&request.path);
        let found = self.world.identity(NAMESPACE, &path);
        refuse_another("umount2", &path, request.identity, found)?;
        self.world.remove("umount2", NAMESPACE, &path)?;
        let inside = format!("{}/", found.unwrap_or_default());
        for kind in [TAP, TAP_ALIAS, QDISC, QDISC_COOKIE] {
            self.world.remove_below(kind, &inside);
        }
        Ok(())
    }

    async fn remove_file(&self, request: RemoveFile, _: Instant) -> PortResult<()> {
        let path = shown(&request.path);
        refuse_another("unlink", &path, request.identity, self.world.identity(FILE, &path))?;
        if self.world.identity(NAMESPACE, &path).is_some() {
            return Err(PortError::new(ErrorKind::Busy, "unlink", path, "simulated: something is mounted there"));
        }
        self.world.remove("unlink", FILE, &path)
    }
}

fn refuse_another(operation: &str, object: &str, expected: Option<Inode>, found: Option<u64>) -> PortResult<()> {
    match (expected, found) {
        (Some(expected), Some(found)) if expected.inode != found => {
            Err(PortError::new(ErrorKind::Foreign, operation, object, "simulated: another one"))
        }
        _ => Ok(()),
    }
}

fn below(inode: u64, name: &str) -> String {
    format!("{inode}/{name}")
}

fn marked(inode: u64, name: &str, alias: &str) -> String {
    format!("{inode}/{name} {alias}")
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
