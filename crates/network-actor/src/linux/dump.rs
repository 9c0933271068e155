//! A look at a namespace: five dumps on one socket, as plain data.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};
use sandbox_model::PortResult;
use sandbox_model::network::{IpNet, MacAddress};

use super::{netlink, tap};
use crate::view::{Address, Link, NamespaceView, Neighbor, Route};

/// Looks again if something changed in between; the last look is taken as it is.
const LOOKS_MAX: usize = 5;

/// The namespace of `socket`.
pub(super) fn view(socket: &OwnedFd) -> PortResult<NamespaceView> {
    let mut view = NamespaceView::default();
    for _ in 0..LOOKS_MAX {
        let (seen, consistent) = look(socket)?;
        view = seen;
        if consistent {
            break;
        }
    }
    Ok(view)
}

fn look(socket: &OwnedFd) -> PortResult<(NamespaceView, bool)> {
    let mut view = NamespaceView::default();
    let mut consistent = true;
    let mut ingress = BTreeSet::new();
    for request in [
        RouteNetlinkMessage::GetLink(tap::without_counters(LinkMessage::default())),
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        RouteNetlinkMessage::GetRoute(RouteMessage::default()),
        RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
    ] {
        let what = match &request {
            RouteNetlinkMessage::GetLink(_) => "a link",
            RouteNetlinkMessage::GetAddress(_) => "an address",
            RouteNetlinkMessage::GetRoute(_) => "a route",
            RouteNetlinkMessage::GetNeighbour(_) => "a neighbour",
            _ => "a qdisc",
        };
        consistent &= netlink::dump(socket, request, |message| match message {
            Ok(RouteNetlinkMessage::NewLink(message)) => view.links.push(link(message)),
            Ok(RouteNetlinkMessage::NewAddress(message)) => view.addresses.extend(address(message)),
            Ok(RouteNetlinkMessage::NewRoute(message)) => match route(message) {
                Ok(route) => view.routes.extend(route),
                Err(reason) => view.unread.push(reason),
            },
            Ok(RouteNetlinkMessage::NewNeighbour(message)) => view.neighbors.extend(neighbor(message)),
            Ok(RouteNetlinkMessage::NewQueueDiscipline(message)) => {
                if message.header.parent == TcHandle::INGRESS {
                    ingress.insert(message.header.index.cast_unsigned());
                }
            }
            Ok(_) => {}
            Err(error) => view.unread.push(format!("{what} cannot be read: {error}")),
        })?;
    }
    for link in &mut view.links {
        link.has_ingress = ingress.contains(&link.index);
    }
    Ok((view, consistent))
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, flags: message.header.flags.bits(), ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = mac(&bytes),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn mac(bytes: &[u8]) -> Option<MacAddress> {
    bytes.try_into().ok().map(MacAddress)
}

/// `IFA_LOCAL` is the address itself where `IFA_ADDRESS` is the peer's (point to point).
fn address(message: AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            _ => {}
        }
    }
    let net = IpNet { address: local.or(address)?, prefix: message.header.prefix_len };
    Some(Address { link: message.header.index, net })
}

/// `None`: a route that the guest's kernel makes by itself, or that is no plain unicast route.
fn route(message: RouteMessage) -> Result<Option<Route>, String> {
    let header = message.header;
    let is_ipv6 = match header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => false,
        rtnetlink::packet_route::AddressFamily::Inet6 => true,
        _ => return Ok(None),
    };
    if header.protocol == RouteProtocol::Kernel
        || header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return Ok(None);
    }
    let mut route = Route {
        link: 0,
        destination: None,
        gateway: None,
        source: None,
        scope: header.scope.into(),
        is_ipv6,
        flags: header.flags.bits(),
        mtu: 0,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.link = index,
            RouteAttribute::Destination(to) => {
                route.destination = ip(to).map(|address| IpNet { address, prefix: header.destination_prefix_length });
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics
                    .iter()
                    .find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    })
                    .unwrap_or(0);
            }
            RouteAttribute::MultiPath(_) => {
                return Err("a route over several links: the guest cannot be told of such".to_owned());
            }
            RouteAttribute::Via(_) => {
                return Err("a route with a next hop of the other family: the guest cannot be told".to_owned());
            }
            _ => {}
        }
    }
    Ok(Some(route))
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(address.into()),
        RouteAddress::Inet6(address) => Some(address.into()),
        _ => None,
    }
}

fn neighbor(message: NeighbourMessage) -> Option<Neighbor> {
    let header = message.header;
    if header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut lladdr) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(ip.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(ip.into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(&bytes),
            _ => {}
        }
    }
    Some(Neighbor {
        link: header.ifindex,
        address: address?,
        mac: lladdr?,
        state: header.state.into(),
        flags: header.flags.bits(),
    })
}
