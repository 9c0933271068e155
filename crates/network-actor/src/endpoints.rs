//! What becomes of the links of a pod's namespace: which get a tap, and what the guest is told.

use std::collections::BTreeMap;

use sandbox_model::network::{
    GuestInterface, GuestNeighbor, GuestNetwork, GuestRoute, IpNet, MacAddress,
};
use sandbox_model::{ErrorKind, PortError};

use crate::view::{Link, NamespaceView};

/// Kinds of links whose frames can be redirected (behaviour A5).
const KINDS: [&str; 4] = ["veth", "macvlan", "ipvlan", "vlan"];
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_NOARP: u32 = 1 << 7;
/// The only flag of a next hop that is a wish; the others are the kernel's findings.
const RTNH_F_ONLINK: u32 = 4;

/// A link that gets a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The link.
    pub link: Link,
    /// The guest's MAC: the link's own.
    pub mac: MacAddress,
    /// Name of the tap.
    pub tap: String,
    /// Whether an earlier run of this sandbox left a tap of that name.
    pub has_leftover: bool,
}

/// What becomes of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointPlan {
    /// In the order of the links' indexes.
    pub endpoints: Vec<Endpoint>,
    /// What the guest must be told.
    pub guest: GuestNetwork,
    /// Links that are left out, each with the reason.
    pub skipped: Vec<String>,
}

/// Name of the tap of the NIC number `index` (behaviour A5).
pub fn tap_name(index: usize) -> String {
    format!("tap{index}_kata")
}

/// The links that get a tap, each with its MAC. Loopback and links without an address are no
/// endpoints; kinds that cannot be redirected are left out, with a reason in `skipped`.
pub fn usable<'a>(
    view: &'a NamespaceView,
    skipped: &mut Vec<String>,
) -> Vec<(&'a Link, MacAddress)> {
    let mut usable = Vec::new();
    for link in view
        .links
        .iter()
        .filter(|link| link.flags & IFF_LOOPBACK == 0)
    {
        let kind = link.kind.as_deref().unwrap_or("device");
        if !view
            .addresses
            .iter()
            .any(|address| address.link == link.index)
        {
            skipped.push(format!("{}: it has no IP address", link.name));
        } else if !KINDS.contains(&kind) {
            skipped.push(format!(
                "{}: links of kind {kind} are not supported",
                link.name
            ));
        } else if let Some(mac) = link.mac {
            usable.push((link, mac));
        } else {
            skipped.push(format!("{}: it has no Ethernet address", link.name));
        }
    }
    usable
}

/// Decides.
///
/// # Errors
/// `Exists`: a tap's name is taken by a link that does not carry `alias`.
pub fn plan(view: &NamespaceView, alias: &str) -> Result<EndpointPlan, PortError> {
    let mut skipped = view.unread.clone();
    let mut endpoints = Vec::new();
    for (index, (link, mac)) in usable(view, &mut skipped).into_iter().enumerate() {
        let tap = tap_name(index);
        let has_leftover = match view.links.iter().find(|other| other.name == tap) {
            None => false,
            Some(other) if other.alias.as_deref() == Some(alias) => true,
            Some(other) => {
                let whose = other.alias.as_deref().unwrap_or("nobody");
                let cause = format!("a link of that name is there already, and belongs to {whose}");
                return Err(PortError::new(ErrorKind::Exists, "TUNSETIFF", tap, cause));
            }
        };
        endpoints.push(Endpoint {
            link: link.clone(),
            mac,
            tap,
            has_leftover,
        });
    }
    // Our own leftovers are replaced, not left out.
    skipped.retain(|reason| {
        !endpoints
            .iter()
            .any(|e| e.has_leftover && reason.split(':').next() == Some(e.tap.as_str()))
    });
    let guest = guest_network(view, &endpoints);
    Ok(EndpointPlan {
        endpoints,
        guest,
        skipped,
    })
}

fn guest_network(view: &NamespaceView, endpoints: &[Endpoint]) -> GuestNetwork {
    let names: BTreeMap<u32, &str> = endpoints
        .iter()
        .map(|e| (e.link.index, e.link.name.as_str()))
        .collect();
    let interfaces = endpoints
        .iter()
        .map(|endpoint| interface(view, endpoint))
        .collect();
    let neighbors = view
        .neighbors
        .iter()
        .filter_map(|neighbor| {
            Some(GuestNeighbor {
                address: neighbor.address,
                device: (*names.get(&neighbor.link)?).to_owned(),
                mac: neighbor.mac,
                state: neighbor.state,
                flags: neighbor.flags,
            })
        })
        .collect();
    let mut routes: Vec<GuestRoute> = view
        .routes
        .iter()
        .filter_map(|route| {
            Some(GuestRoute {
                destination: route.destination,
                gateway: route.gateway,
                device: (*names.get(&route.link)?).to_owned(),
                source: route.source,
                scope: route.scope,
                is_ipv6: route.is_ipv6,
                flags: route.flags & RTNH_F_ONLINK,
                mtu: route.mtu,
            })
        })
        .collect();
    // A gateway must be reachable before a route may name it (stable: the kernel's order otherwise).
    routes.sort_by_key(|route| route.gateway.is_some());
    GuestNetwork {
        interfaces,
        neighbors,
        routes,
    }
}

fn interface(view: &NamespaceView, endpoint: &Endpoint) -> GuestInterface {
    let link = &endpoint.link;
    let addresses: Vec<IpNet> = view
        .addresses
        .iter()
        .filter(|address| address.link == link.index)
        .map(|address| address.net)
        .collect();
    GuestInterface {
        name: link.name.clone(),
        addresses,
        mtu: link.mtu,
        mac: endpoint.mac,
        link_kind: link.kind.clone().unwrap_or_default(),
        raw_flags: link.flags & IFF_NOARP,
    }
}
