//! The plan of a namespace of our own: one tap that carries the gateway's addresses, and a guest
//! that is told about them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sandbox_model::SandboxId;
use sandbox_model::network::{GuestInterface, GuestNetwork, GuestRoute, IpNet, MacAddress};

use crate::NetworkError;
use crate::mark::guest_mac;

/// MTU of the tap and of the guest's interface, in bytes: Ethernet's.
pub const MTU: u32 = 1500;
/// The guest's name of its interface.
pub const GUEST_NAME: &str = "eth0";

/// What is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPlan {
    /// The tap's addresses: the gateways.
    pub gateways: Vec<IpNet>,
    /// The guest's MAC.
    pub mac: MacAddress,
    /// What the guest must be told.
    pub guest: GuestNetwork,
}

/// Decides, for the guest's wished `addresses`.
///
/// # Errors
/// [`NetworkError::Invalid`]: there is no address, one twice, or one that no host of its subnet can
/// have beside a gateway.
pub fn plan(addresses: &[IpNet], sandbox: &SandboxId) -> Result<OwnPlan, NetworkError> {
    let invalid = |what: String| Err(NetworkError::Invalid { what });
    if addresses.is_empty() {
        return invalid("a network of our own needs at least one address, as in 10.0.0.2/24".to_owned());
    }
    let mut gateways: Vec<IpNet> = Vec::new();
    for (index, net) in addresses.iter().enumerate() {
        if addresses[..index].iter().any(|earlier| earlier.address == net.address) {
            return invalid(format!("{net} is given twice"));
        }
        let gateway = IpNet { address: gateway_of(*net)?, prefix: net.prefix };
        if !gateways.contains(&gateway) {
            gateways.push(gateway);
        }
    }
    for net in addresses {
        if gateways.iter().any(|gateway| gateway.address == net.address) {
            return invalid(format!("{net} is the gateway's address; take a later one of the subnet"));
        }
    }
    let mac = guest_mac(sandbox);
    let interface = GuestInterface {
        name: GUEST_NAME.to_owned(),
        addresses: addresses.to_vec(),
        mtu: MTU,
        mac,
        link_kind: "tuntap".to_owned(),
        raw_flags: 0,
    };
    let routes = [false, true]
        .into_iter()
        .filter_map(|is_ipv6| gateways.iter().find(|gateway| gateway.address.is_ipv6() == is_ipv6).map(default_route))
        .collect();
    let guest = GuestNetwork { interfaces: vec![interface], neighbors: Vec::new(), routes };
    Ok(OwnPlan { gateways, mac, guest })
}

fn default_route(gateway: &IpNet) -> GuestRoute {
    GuestRoute {
        destination: None,
        gateway: Some(gateway.address),
        device: GUEST_NAME.to_owned(),
        source: None,
        scope: 0,
        is_ipv6: gateway.address.is_ipv6(),
        flags: 0,
        mtu: 0,
    }
}

/// The first host address of the subnet of `net`.
fn gateway_of(net: IpNet) -> Result<IpAddr, NetworkError> {
    let invalid = |why: &str| Err(NetworkError::Invalid { what: format!("{net} {why}") });
    // A /31 or /127 has two hosts and a /32 or /128 one: no room for a gateway of this kind.
    let prefix_max = if net.address.is_ipv4() { 30 } else { 126 };
    if net.prefix == 0 || net.prefix > prefix_max {
        return invalid(&format!("needs a prefix length within 1..={prefix_max} to leave room for a gateway"));
    }
    if net.address.is_loopback() || net.address.is_multicast() || net.address.is_unspecified() {
        return invalid("is no address that a host can have");
    }
    match net.address {
        IpAddr::V4(address) => {
            let mask = u32::MAX << (32 - net.prefix);
            let network = address.to_bits() & mask;
            if address.to_bits() == network || address.to_bits() == network | !mask {
                return invalid("is its subnet's own or broadcast address");
            }
            Ok(Ipv4Addr::from_bits(network + 1).into())
        }
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << (128 - net.prefix));
            if address.to_bits() == network {
                return invalid("is its subnet's router anycast address");
            }
            Ok(Ipv6Addr::from_bits(network + 1).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planned(addresses: &[&str]) -> Result<Vec<String>, String> {
        let addresses: Vec<IpNet> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        plan(&addresses, &SandboxId::new("pod-1").unwrap())
            .map(|plan| plan.gateways.iter().map(ToString::to_string).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_gateway_is_the_first_host_of_each_subnet() {
        for (addresses, gateways) in [
            (&["10.0.0.2/24"][..], &["10.0.0.1/24"][..]),
            (&["10.1.2.3/8"], &["10.0.0.1/8"]),
            (&["10.0.0.6/30"], &["10.0.0.5/30"]),
            (&["10.0.0.2/24", "10.0.0.3/24"], &["10.0.0.1/24"]),
            (&["fd00::2/64"], &["fd00::1/64"]),
            (&["fd00::6/126"], &["fd00::5/126"]),
            (&["10.0.0.2/24", "fd00::2/64"], &["10.0.0.1/24", "fd00::1/64"]),
        ] {
            assert_eq!(planned(addresses).unwrap(), gateways, "{addresses:?}");
        }
    }

    #[test]
    fn what_leaves_no_room_for_a_gateway_is_refused() {
        for (addresses, reason) in [
            (&[][..], "at least one"),
            (&["10.0.0.1/24"], "gateway"),
            (&["fd00::1/64"], "gateway"),
            (&["10.0.0.0/24"], "subnet's own"),
            (&["10.0.0.255/24"], "broadcast"),
            (&["fd00::/64"], "anycast"),
            (&["10.0.0.2/31"], "1..=30"),
            (&["10.0.0.2/32"], "1..=30"),
            (&["10.0.0.2/0"], "1..=30"),
            (&["fd00::2/127"], "1..=126"),
            (&["127.0.0.2/8"], "host can have"),
            (&["224.0.0.2/8"], "host can have"),
            (&["10.0.0.2/24", "10.0.0.2/16"], "twice"),
            (&["10.0.0.66/24", "10.0.0.65/24", "10.0.0.70/26"], "10.0.0.65/24 is the gateway's"),
        ] {
            let error = planned(addresses).unwrap_err();
            assert!(error.contains(reason), "{addresses:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_address_breaks_it_and_a_gateway_is_a_neighbour(bits: u128, prefix in 0_u8..=128, v4: bool) {
            let (address, prefix) = if v4 {
                (IpAddr::from(Ipv4Addr::from_bits(bits as u32)), prefix.min(32))
            } else {
                (IpAddr::from(Ipv6Addr::from_bits(bits)), prefix)
            };
            let net = IpNet { address, prefix };
            if let Ok(plan) = plan(&[net], &SandboxId::new("pod-1").unwrap()) {
                let gateway = plan.gateways[0];
                prop_assert_eq!(gateway.prefix, prefix);
                prop_assert_ne!(gateway.address, address);
                let network = |ip: IpAddr| match ip {
                    IpAddr::V4(ip) => u128::from(ip.to_bits() >> (32 - prefix)),
                    IpAddr::V6(ip) => ip.to_bits() >> (128 - prefix),
                };
                prop_assert_eq!(network(gateway.address), network(address));
            }
        }
    }
}
