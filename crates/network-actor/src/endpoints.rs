//! What becomes of the links of a pod's namespace: which get a tap, and what the guest is told.

use std::collections::BTreeMap;

use sandbox_model::network::{GuestInterface, GuestNeighbor, GuestNetwork, GuestRoute, IpNet, MacAddress};
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
pub fn usable<'a>(view: &'a NamespaceView, skipped: &mut Vec<String>) -> Vec<(&'a Link, MacAddress)> {
    let mut usable = Vec::new();
    for link in view.links.iter().filter(|link| link.flags & IFF_LOOPBACK == 0) {
        let kind = link.kind.as_deref().unwrap_or("device");
        if !view.addresses.iter().any(|address| address.link == link.index) {
            skipped.push(format!("{}: it has no IP address", link.name));
        } else if !KINDS.contains(&kind) {
            skipped.push(format!("{}: links of kind {kind} are not supported", link.name));
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
        endpoints.push(Endpoint { link: link.clone(), mac, tap, has_leftover });
    }
    // Our own leftovers are replaced, not left out.
    skipped
        .retain(|reason| !endpoints.iter().any(|e| e.has_leftover && reason.split(':').next() == Some(e.tap.as_str())));
    let guest = guest_network(view, &endpoints);
    Ok(EndpointPlan { endpoints, guest, skipped })
}

fn guest_network(view: &NamespaceView, endpoints: &[Endpoint]) -> GuestNetwork {
    let names: BTreeMap<u32, &str> = endpoints.iter().map(|e| (e.link.index, e.link.name.as_str())).collect();
    let interfaces = endpoints.iter().map(|endpoint| interface(view, endpoint)).collect();
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
    GuestNetwork { interfaces, neighbors, routes }
}

fn interface(view: &NamespaceView, endpoint: &Endpoint) -> GuestInterface {
    let link = &endpoint.link;
    let addresses: Vec<IpNet> =
        view.addresses.iter().filter(|address| address.link == link.index).map(|address| address.net).collect();
    GuestInterface {
        name: link.name.clone(),
        addresses,
        mtu: link.mtu,
        mac: endpoint.mac,
        link_kind: link.kind.clone().unwrap_or_default(),
        raw_flags: link.flags & IFF_NOARP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Address, Neighbor, Route};

    const ALIAS: &str = "resource-actors:pod-1";

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: Some(kind.to_owned()),
            mac: Some(MacAddress([2, 0, 0, 0, 0, 7])),
            mtu: 1500,
            ..Link::default()
        }
    }

    fn view(links: Vec<Link>) -> NamespaceView {
        let addresses =
            links.iter().map(|link| Address { link: link.index, net: "10.0.0.2/24".parse().unwrap() }).collect();
        NamespaceView { links, addresses, ..NamespaceView::default() }
    }

    #[test]
    fn each_kind_of_link_is_taken_or_left_out_with_a_reason() {
        for (kind, is_taken) in [
            ("veth", true),
            ("macvlan", true),
            ("ipvlan", true),
            ("vlan", true),
            ("tun", false),
            ("bridge", false),
            ("bond", false),
            ("wireguard", false),
            ("dummy", false),
            ("macvtap", false),
        ] {
            let plan = plan(&view(vec![link(2, "net0", kind)]), ALIAS).unwrap();
            assert_eq!(plan.endpoints.len(), usize::from(is_taken), "{kind}");
            assert_eq!(plan.skipped.len(), usize::from(!is_taken), "{kind}: {:?}", plan.skipped);
        }
    }

    #[test]
    fn loopback_and_links_without_an_address_are_no_endpoints() {
        let mut lo = link(1, "lo", "");
        lo.flags = IFF_LOOPBACK;
        let mut seen = view(vec![lo, link(2, "eth0", "veth"), link(3, "eth1", "veth")]);
        seen.addresses.retain(|address| address.link != 2);
        let plan = plan(&seen, ALIAS).unwrap();
        assert_eq!(plan.endpoints[0].link.name, "eth1");
        assert_eq!(plan.endpoints[0].tap, "tap0_kata", "numbered by NIC, not by link");
        assert_eq!(plan.skipped, ["eth0: it has no IP address"]);
    }

    #[test]
    fn a_tap_of_that_name_is_replaced_if_ours_and_an_error_if_not() {
        for (alias, expected) in [(Some(ALIAS), Ok(true)), (Some("resource-actors:pod-2"), Err(())), (None, Err(()))] {
            let mut tap = link(9, "tap0_kata", "tun");
            tap.alias = alias.map(str::to_owned);
            let planned = plan(&view(vec![link(2, "eth0", "veth"), tap]), ALIAS);
            let got = planned.map(|plan| {
                assert_eq!(plan.skipped, [""; 0], "it goes, so there is nothing to say of it");
                plan.endpoints[0].has_leftover
            });
            assert_eq!(got.map_err(drop), expected, "{alias:?}");
        }
    }

    #[test]
    fn the_guest_hears_of_its_own_links_only_and_of_gateways_after_the_way_to_them() {
        let route = |link, destination: Option<&str>, gateway: Option<&str>, flags| Route {
            link,
            destination: destination.map(|to| to.parse().unwrap()),
            gateway: gateway.map(|to| to.parse().unwrap()),
            source: None,
            scope: 0,
            is_ipv6: false,
            flags,
            mtu: 0,
        };
        let neighbor = |link| Neighbor {
            link,
            address: "10.0.0.9".parse().unwrap(),
            mac: MacAddress([2, 0, 0, 0, 0, 9]),
            state: 0x80,
            flags: 0,
        };
        let mut seen = view(vec![link(2, "eth0", "veth"), link(3, "br0", "bridge")]);
        // Dead (1) and linkdown (16) are findings of the host's kernel, onlink (4) is a wish.
        seen.routes = vec![
            route(2, None, Some("169.254.1.1"), 4 | 16 | 1),
            route(3, Some("10.3.0.0/16"), None, 0),
            route(2, Some("169.254.1.1/32"), None, 0),
        ];
        seen.neighbors = vec![neighbor(2), neighbor(3), neighbor(77)];
        let guest = plan(&seen, ALIAS).unwrap().guest;
        let routes: Vec<_> = guest.routes.iter().map(|r| (r.destination.map(|to| to.to_string()), r.flags)).collect();
        assert_eq!(routes, [(Some("169.254.1.1/32".to_owned()), 0), (None, 4)]);
        assert_eq!(guest.neighbors.len(), 1);
        assert_eq!(guest.interfaces.len(), 1);
    }
}
