//! Our words for networks, storages and devices, in the agent's.

use std::net::IpAddr;

use agent_protocol::agent::{Device, FSGroup, KernelModule, Storage as AgentStorage};
use agent_protocol::types::{ARPNeighbor, FSGroupChangePolicy, IPAddress, IPFamily, Interface, Route};
use protobuf::MessageField;
use sandbox_model::device::AgentDevice;
use sandbox_model::network::{GuestInterface, GuestNeighbor, GuestRoute, IpNet};
use sandbox_model::storage::Storage;

/// An interface; the guest finds it by its MAC, so no path of a device is given.
pub(super) fn interface(from: GuestInterface) -> Interface {
    Interface {
        device: from.name.clone(),
        name: from.name,
        IPAddresses: from.addresses.into_iter().map(net).collect(),
        mtu: from.mtu.into(),
        hwAddr: from.mac.to_string(),
        type_: from.link_kind,
        raw_flags: from.raw_flags,
        ..Default::default()
    }
}

/// A route; the default one has an empty destination.
pub(super) fn route(from: GuestRoute) -> Route {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    Route {
        dest: from.destination.map(|destination| destination.to_string()).unwrap_or_default(),
        gateway: text(from.gateway),
        device: from.device,
        source: text(from.source),
        scope: from.scope.into(),
        family: family(from.is_ipv6).into(),
        flags: from.flags,
        mtu: from.mtu,
        ..Default::default()
    }
}

/// A permanent neighbour.
pub(super) fn neighbor(from: GuestNeighbor) -> ARPNeighbor {
    let address = IPAddress {
        family: family(from.address.is_ipv6()).into(),
        address: from.address.to_string(),
        ..Default::default()
    };
    ARPNeighbor {
        toIPAddress: MessageField::some(address),
        device: from.device,
        lladdr: from.mac.to_string(),
        state: from.state.into(),
        flags: from.flags.into(),
        ..Default::default()
    }
}

/// A mount that the agent makes.
pub(super) fn storage(from: Storage) -> AgentStorage {
    let group =
        |group_id| FSGroup { group_id, group_change_policy: FSGroupChangePolicy::Always.into(), ..Default::default() };
    AgentStorage {
        driver: from.driver,
        driver_options: from.driver_options,
        source: from.source,
        fstype: from.fstype,
        options: from.options,
        mount_point: from.mount_point,
        fs_group: from.fs_group.map(group).into(),
        shared: from.shared,
        ..Default::default()
    }
}

/// A device of a container.
pub(super) fn device(from: AgentDevice) -> Device {
    Device {
        id: from.id,
        type_: from.driver,
        vm_path: from.vm_path,
        container_path: from.container_path,
        options: from.options,
        ..Default::default()
    }
}

/// A kernel module, from `NAME PARAMETERS`.
pub(super) fn module(line: &str) -> KernelModule {
    let mut words = line.split_whitespace().map(str::to_owned);
    KernelModule { name: words.next().unwrap_or_default(), parameters: words.collect(), ..Default::default() }
}

fn net(from: IpNet) -> IPAddress {
    IPAddress {
        family: family(from.address.is_ipv6()).into(),
        address: from.address.to_string(),
        mask: from.prefix.to_string(),
        ..Default::default()
    }
}

fn family(is_ipv6: bool) -> IPFamily {
    if is_ipv6 { IPFamily::v6 } else { IPFamily::v4 }
}

#[cfg(test)]
mod tests {
    use sandbox_model::network::MacAddress;

    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xab]);

    #[test]
    fn interfaces_carry_both_families() {
        let made = interface(GuestInterface {
            name: "eth0".to_owned(),
            addresses: vec!["10.0.0.2/24".parse().unwrap(), "fe80::1/64".parse().unwrap()],
            mtu: 1450,
            mac: MAC,
            link_kind: "veth".to_owned(),
            raw_flags: 0x80,
        });
        assert_eq!((made.device.as_str(), made.name.as_str(), made.type_.as_str()), ("eth0", "eth0", "veth"));
        assert_eq!((made.mtu, made.raw_flags, made.devicePath.as_str()), (1450, 0x80, ""));
        assert_eq!(made.hwAddr, "02:00:00:00:00:ab");
        let addresses: Vec<_> = made
            .IPAddresses
            .iter()
            .map(|ip| (ip.family.enum_value().unwrap(), ip.address.as_str(), ip.mask.as_str()))
            .collect();
        assert_eq!(addresses, [(IPFamily::v4, "10.0.0.2", "24"), (IPFamily::v6, "fe80::1", "64")]);
    }

    #[test]
    fn a_default_route_has_no_destination() {
        let mut ours = GuestRoute {
            destination: None,
            gateway: Some("10.0.0.1".parse().unwrap()),
            device: "eth0".to_owned(),
            source: None,
            scope: 0,
            is_ipv6: false,
            flags: 4,
            mtu: 0,
        };
        let made = route(ours.clone());
        assert_eq!((made.dest.as_str(), made.gateway.as_str(), made.source.as_str()), ("", "10.0.0.1", ""));
        assert_eq!((made.family.enum_value().unwrap(), made.flags), (IPFamily::v4, 4));
        ours.destination = Some("fd00::/8".parse().unwrap());
        ours.is_ipv6 = true;
        ours.scope = 253;
        ours.source = Some("fd00::2".parse().unwrap());
        let made = route(ours);
        assert_eq!((made.dest.as_str(), made.source.as_str(), made.scope), ("fd00::/8", "fd00::2", 253));
        assert_eq!(made.family.enum_value().unwrap(), IPFamily::v6);
    }

    #[test]
    fn neighbours_storages_devices_and_modules_are_whole() {
        let address = "10.0.0.1".parse().unwrap();
        let made = neighbor(GuestNeighbor { address, device: "eth0".into(), mac: MAC, state: 0x80, flags: 2 });
        assert_eq!((made.toIPAddress.address.as_str(), made.toIPAddress.mask.as_str()), ("10.0.0.1", ""));
        assert_eq!((made.lladdr.as_str(), made.state, made.flags), ("02:00:00:00:00:ab", 0x80, 2));

        let made = storage(Storage { driver: "blk".into(), fs_group: Some(1000), ..Default::default() });
        assert_eq!((made.driver.as_str(), made.fs_group.group_id), ("blk", 1000));
        assert!(storage(Storage::default()).fs_group.is_none());

        let made = device(AgentDevice {
            id: "02/05".into(),
            driver: "blk".into(),
            vm_path: String::new(),
            container_path: "/dev/xda".into(),
            options: vec!["a=b".into()],
        });
        assert_eq!((made.id.as_str(), made.type_.as_str(), made.container_path.as_str()), ("02/05", "blk", "/dev/xda"));
        assert_eq!(made.options, ["a=b"]);

        let made = module("e1000e  debug=1 x=2");
        assert_eq!((made.name.as_str(), made.parameters.as_slice()), ("e1000e", &["debug=1".into(), "x=2".into()][..]));
    }
}
