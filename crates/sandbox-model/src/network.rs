//! What a guest must be told about its network, and how the host side is wished.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpNet {
    /// The address.
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl std::fmt::Display for IpNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl std::str::FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) =
            text.split_once('/').ok_or_else(|| format!("{text:?} has no prefix length, as in 10.0.0.2/24"))?;
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        match prefix.parse() {
            Ok(prefix) if prefix <= width => Ok(Self { address, prefix }),
            _ => Err(format!("prefix length {prefix:?} is not within 0..={width}")),
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no MAC address, as in 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

/// How frames get from the pod's interface to the tap (`internetworking_model`, behaviour A5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterworkingModel {
    /// Ingress qdiscs with u32 filters that redirect both ways.
    #[default]
    TcFilter,
    /// Nothing: the guest has no network.
    None,
}

/// Where a sandbox's network comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum NetworkSource {
    /// A namespace that somebody (a CNI plugin) has made and filled.
    Namespace {
        /// Its file (`/run/netns/NAME`, `/proc/PID/ns/net`).
        path: PathBuf,
    },
    /// A namespace of our own with one tap: the tap itself carries the gateway's address, the guest
    /// the wished ones.
    Own {
        /// The guest's addresses; the first host address of each subnet becomes the gateway.
        addresses: Vec<IpNet>,
    },
}

/// The wish for a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// Where it comes from.
    pub source: NetworkSource,
    /// How frames get to the tap.
    pub model: InterworkingModel,
    /// Queue pairs of each NIC, 1 to 256.
    pub queue_pairs: u16,
}

/// An interface as the guest shall see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestInterface {
    /// Its name in the guest.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// MTU in bytes.
    pub mtu: u32,
    /// By which the guest recognises it.
    pub mac: MacAddress,
    /// Kind of the host's link (`veth`, `tuntap`).
    pub link_kind: String,
    /// `IFF_NOARP` if set on the host.
    pub raw_flags: u32,
}

/// A route as the guest shall have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestRoute {
    /// Destination; `None` is the default route.
    pub destination: Option<IpNet>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Interface name.
    pub device: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Whether IPv6 (a default route carries no address to tell).
    pub is_ipv6: bool,
    /// `RTNH_F_*` flags (onlink).
    pub flags: u32,
    /// MTU of the route, 0 = none.
    pub mtu: u32,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestNeighbor {
    /// The neighbour's address.
    pub address: IpAddr,
    /// Interface name.
    pub device: String,
    /// Its link-layer address.
    pub mac: MacAddress,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
}

/// All that the guest must be told, in the order interfaces, neighbours, routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestNetwork {
    /// Interfaces.
    pub interfaces: Vec<GuestInterface>,
    /// Permanent neighbours.
    pub neighbors: Vec<GuestNeighbor>,
    /// Routes that the kernel does not make by itself.
    pub routes: Vec<GuestRoute>,
}
