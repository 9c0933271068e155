//! The guest's network: what the host says, and what the kernel has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::hotplug::Hotplug;

/// `IFF_NOARP`, the one flag of an interface that the host passes on.
const NO_ARP: u32 = 0x80;

/// Brings `lo` up.
pub(crate) async fn bring_up_loopback() -> Result<()> {
    let netlink = connect()?;
    let index = link_by_name(&netlink, "lo").await?.header.index;
    Ok(netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?)
}

/// Gives one interface its name, addresses and MTU, and brings it up.
///
/// The interface may still be on its way: it is waited for, by PCI path if that is known.
pub(crate) async fn update_interface(wanted: &Interface, hotplug: &Hotplug) -> Result<()> {
    let name = if wanted.devicePath.is_empty() {
        let what = format!("interface with address {}", wanted.hwAddr);
        hotplug.wait_for(&what, || name_by_mac(&wanted.hwAddr)).await?
    } else {
        hotplug.network_device(&wanted.devicePath).await?
    };
    let netlink = connect()?;
    let index = link_by_name(&netlink, &name).await?.header.index;
    if !wanted.name.is_empty() && wanted.name != name {
        rename(&netlink, index, &wanted.name).await?;
    }
    replace_addresses(&netlink, index, &wanted.IPAddresses).await?;
    let mut link = LinkUnspec::new_with_index(index).arp(wanted.raw_flags & NO_ARP == 0).up();
    if wanted.mtu != 0 {
        link = link.mtu(u32::try_from(wanted.mtu)?);
    }
    netlink.link().set(link.build()).execute().await.context("bring the interface up")
}

/// Sets routes; those without a gateway first, because gateways are reached through them.
pub(crate) async fn update_routes(routes: &[Route]) -> Result<()> {
    let netlink = connect()?;
    let (through, direct): (Vec<_>, Vec<_>) = routes.iter().partition(|route| !route.gateway.is_empty());
    for route in direct.into_iter().chain(through) {
        let index = link_by_name(&netlink, &route.device).await?.header.index;
        let message = to_message(route, index)?;
        netlink
            .route()
            .add(message)
            .replace()
            .execute()
            .await
            .with_context(|| format!("route to `{}` through `{}` on {}", route.dest, route.gateway, route.device))?;
    }
    Ok(())
}

/// Adds neighbours that are never asked for.
pub(crate) async fn add_neighbours(neighbours: &[ARPNeighbor]) -> Result<()> {
    let netlink = connect()?;
    for neighbour in neighbours {
        let address: IpAddr = neighbour.toIPAddress.address.parse().context("neighbour address")?;
        let index = link_by_name(&netlink, &neighbour.device).await?.header.index;
        let state = match u16::try_from(neighbour.state)? {
            0 => NeighbourState::Permanent,
            state => NeighbourState::from(state),
        };
        netlink
            .neighbours()
            .add(index, address)
            .link_layer_address(&parse_mac(&neighbour.lladdr)?)
            .state(state)
            .flags(NeighbourFlags::from_bits_retain(u8::try_from(neighbour.flags)?))
            .replace()
            .execute()
            .await
            .with_context(|| format!("neighbour {address} on {}", neighbour.device))?;
    }
    Ok(())
}

/// Every interface but the loopback.
pub(crate) async fn interfaces() -> Result<Vec<Interface>> {
    let netlink = connect()?;
    let addresses: Vec<AddressMessage> = netlink.address().get().execute().try_collect().await?;
    let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
    let described = links.iter().map(|link| describe_link(link, &addresses));
    Ok(described.filter(|interface| interface.name != "lo").collect())
}

/// The routes of the main table.
pub(crate) async fn routes() -> Result<Vec<Route>> {
    let netlink = connect()?;
    let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
    let mut all = Vec::new();
    let families = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for family in families {
        let found: Vec<RouteMessage> = netlink.route().get(family).execute().try_collect().await?;
        let main = found.iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN);
        all.extend(main.map(|route| describe_route(route, &links)));
    }
    Ok(all)
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
    // Ends when the last handle is gone.
    tokio::spawn(connection);
    Ok(handle)
}

async fn link_by_name(netlink: &Handle, name: &str) -> Result<LinkMessage> {
    let mut links = netlink.link().get().match_name(name).execute();
    let link = links.try_next().await.with_context(|| format!("look up interface {name}"))?;
    link.with_context(|| format!("no interface {name}"))
}

fn name_by_mac(mac: &str) -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/net").ok()?;
    let matches = |path: std::path::PathBuf| {
        let address = std::fs::read_to_string(path.join("address")).unwrap_or_default();
        address.trim().eq_ignore_ascii_case(mac)
    };
    let found = entries.flatten().find(|entry| matches(entry.path()))?;
    found.file_name().into_string().ok()
}

/// Renames an interface, out of whose way another one with that name is moved.
async fn rename(netlink: &Handle, index: u32, name: &str) -> Result<()> {
    if let Ok(other) = link_by_name(netlink, name).await {
        let other = other.header.index;
        set_name(netlink, other, &format!("moved{other}")).await?;
    }
    set_name(netlink, index, name).await.with_context(|| format!("rename to {name}"))
}

async fn set_name(netlink: &Handle, index: u32, name: &str) -> Result<()> {
    // An interface that is up keeps its name.
    let down = LinkUnspec::new_with_index(index).down().build();
    netlink.link().set(down).execute().await?;
    let named = LinkUnspec::new_with_index(index).name(name).build();
    Ok(netlink.link().set(named).execute().await?)
}

async fn replace_addresses(netlink: &Handle, index: u32, wanted: &[IPAddress]) -> Result<()> {
    let old = netlink.address().get().set_link_index_filter(index).execute();
    let old: Vec<AddressMessage> = old.try_collect().await.context("list addresses")?;
    // The kernel's own link-local address stays.
    for address in old.into_iter().filter(|address| address.header.scope != AddressScope::Link) {
        netlink.address().del(address).execute().await.context("remove an old address")?;
    }
    for wanted in wanted {
        let address: IpAddr = wanted.address.parse().with_context(|| format!("address `{}`", wanted.address))?;
        let length = wanted.mask.parse().with_context(|| format!("prefix `{}`", wanted.mask))?;
        let request = netlink.address().add(index, address, length).replace();
        request.execute().await.with_context(|| format!("add address {address}/{length}"))?;
    }
    Ok(())
}

fn to_message(route: &Route, index: u32) -> Result<RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .scope(RouteScope::from(u8::try_from(route.scope)?));
    let family = match route.family.enum_value_or_default() {
        IPFamily::v4 => AddressFamily::Inet,
        IPFamily::v6 => AddressFamily::Inet6,
    };
    builder.get_mut().header.address_family = family;
    builder.get_mut().header.flags = RouteFlags::from_bits_retain(route.flags);
    if !route.dest.is_empty() {
        let (address, length) = parse_prefix(&route.dest)?;
        builder = builder.destination_prefix(address, length)?;
    }
    if !route.gateway.is_empty() {
        builder = builder.gateway(route.gateway.parse().context("gateway")?)?;
    }
    if !route.source.is_empty() {
        builder = builder.pref_source(route.source.parse().context("source")?)?;
    }
    if route.mtu != 0 {
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]);
        builder.get_mut().attributes.push(metrics);
    }
    Ok(builder.build())
}

/// `address/length`; without a length the address stands for itself alone.
fn parse_prefix(text: &str) -> Result<(IpAddr, u8)> {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().with_context(|| format!("destination `{text}`"))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = if length.is_empty() { longest } else { length.parse()? };
    ensure!(length <= longest, "destination `{text}` has too long a prefix");
    Ok((address, length))
}

fn parse_mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    match bytes {
        Ok(bytes) if bytes.len() == 6 => Ok(bytes),
        _ => bail!("`{text}` is not a hardware address"),
    }
}

fn describe_link(link: &LinkMessage, addresses: &[AddressMessage]) -> Interface {
    let mut interface = Interface::new();
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => {
                interface.name.clone_from(name);
                interface.device.clone_from(name);
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = u64::from(*mtu),
            LinkAttribute::Address(bytes) => {
                let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                interface.hwAddr = bytes.join(":");
            }
            _ => {}
        }
    }
    let own = addresses.iter().filter(|address| address.header.index == link.header.index);
    interface.IPAddresses = own.filter_map(describe_address).collect();
    interface
}

fn describe_address(message: &AddressMessage) -> Option<IPAddress> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })?;
    Some(IPAddress {
        family: family(address).into(),
        address: address.to_string(),
        mask: message.header.prefix_len.to_string(),
        ..IPAddress::default()
    })
}

fn describe_route(message: &RouteMessage, links: &[LinkMessage]) -> Route {
    let mut route = Route { scope: u32::from(u8::from(message.header.scope)), ..Route::default() };
    route.flags = message.header.flags.bits();
    if message.header.address_family == AddressFamily::Inet6 {
        route.family = IPFamily::v6.into();
    }
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let length = message.header.destination_prefix_length;
                route.dest = format!("{}/{length}", text(address));
            }
            RouteAttribute::Gateway(address) => route.gateway = text(address),
            RouteAttribute::PrefSource(address) => route.source = text(address),
            RouteAttribute::Oif(index) => {
                let link = links.iter().find(|link| link.header.index == *index);
                route.device = link.map(|link| describe_link(link, &[]).name).unwrap_or_default();
            }
            _ => {}
        }
    }
    route
}

fn family(address: IpAddr) -> IPFamily {
    if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}

fn text(address: &RouteAddress) -> String {
    match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_names_no_destination() {
        let route = Route { gateway: "10.0.0.1".to_owned(), flags: 4, ..Route::default() };
        let message = to_message(&route, 2).unwrap();
        assert_eq!(message.header.destination_prefix_length, 0);
        assert_eq!(message.header.flags, RouteFlags::Onlink);
        assert!(message.attributes.contains(&RouteAttribute::Oif(2)));
    }

    #[test]
    fn prefixes_and_hardware_addresses_are_checked() {
        assert_eq!(parse_prefix("10.0.0.0/8").unwrap(), ("10.0.0.0".parse().unwrap(), 8));
        assert_eq!(parse_prefix("fd00::1").unwrap().1, 128);
        assert!(parse_prefix("10.0.0.0/33").is_err());
        assert_eq!(parse_mac("02:00:00:00:00:0A").unwrap()[5], 10);
        assert!(parse_mac("02:00").is_err());
    }
}
