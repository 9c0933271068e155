//! What a namespace looks like: its links, addresses, routes and neighbours as plain data.

use std::net::IpAddr;

use sandbox_model::network::{IpNet, MacAddress};
use serde::{Deserialize, Serialize};

/// One look at a namespace.
///
/// The kernel answers link by link, so what belongs to a link that vanished in between may be
/// missing; what is there is put together by index, never by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceView {
    /// Links, in the order of their indexes.
    pub links: Vec<Link>,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<Address>,
    /// Unicast routes of the main table that somebody has made (not `RTPROT_KERNEL`).
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbors: Vec<Neighbor>,
    /// What could not be read, each with the reason.
    pub unread: Vec<String>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// `ifindex`.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFLA_INFO_KIND` (`veth`, `tun`); none for hardware and loopback.
    pub kind: Option<String>,
    /// Its Ethernet address.
    pub mac: Option<MacAddress>,
    /// MTU in bytes.
    pub mtu: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// `ifalias`.
    pub alias: Option<String>,
    /// Whether something sits on its ingress hook (`ingress` or `clsact` qdisc).
    pub has_ingress: bool,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address.
    pub net: IpNet,
}

/// A route out of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Index of the link.
    pub link: u32,
    /// Destination; `None` is the default route.
    pub destination: Option<IpNet>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Whether IPv6.
    pub is_ipv6: bool,
    /// `RTNH_F_*`.
    pub flags: u32,
    /// MTU, 0 = none.
    pub mtu: u32,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// Index of the link.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: MacAddress,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
}
