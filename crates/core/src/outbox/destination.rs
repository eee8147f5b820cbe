//! The addresses to which webhook requests may be sent. Whoever may write a TokenWebhook chooses a URL to which the
//! controller connects from inside the cluster: server-side request forgery (OWASP API7:2023), unless addresses are
//! restricted.
//!
//! The policy applies to the address that is connected to, after the name was resolved, never to the name. Loopback,
//! link-local (where clouds serve credentials), the clouds' other metadata addresses, and whatever is not a single
//! host's address are never allowed; private networks only with `--webhook-allow-private`; both if the operator lists
//! the network as an exception. An IPv4 address embedded in an IPv6 one (mapped, NAT64, 6to4, Teredo) is treated as IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

/// The addresses that are allowed besides public ones.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    /// Private networks (RFC 1918, RFC 4193, RFC 6598): Services and pods of the cluster have such addresses.
    pub allow_private: bool,
    /// Exceptions: networks that are allowed whatever they are.
    pub allow: Vec<IpNet>,
}

/// Why an address is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Loopback, link-local, a metadata service, or not the address of a single host.
    #[error(
        "{0} is an address to which webhooks are never sent (loopback, link-local, metadata or reserved); the operator may except networks by --webhook-allow-cidrs"
    )]
    Never(IpAddr),
    /// An address of a private network, which the operator has not allowed.
    #[error(
        "{0} is an address of a private network; the operator may allow those by --webhook-allow-private"
    )]
    Private(IpAddr),
}

impl AddressPolicy {
    /// Checks whether requests may be sent to an address.
    pub fn check(&self, address: IpAddr) -> Result<(), AddressError> {
        let inner = innermost(address);
        if [address, inner].iter().any(|a| self.allow.iter().any(|network| network.contains(a))) {
            return Ok(());
        }
        match kind(inner) {
            Kind::Never => Err(AddressError::Never(address)),
            Kind::Private if !self.allow_private => Err(AddressError::Private(address)),
            Kind::Private | Kind::Public => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Never,
    Private,
    Public,
}

fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

/// By the IANA registry of special-purpose addresses (RFC 6890), and what clouds serve elsewhere.
fn kind_v4(address: Ipv4Addr) -> Kind {
    const METADATA: [Ipv4Addr; 2] = [
        // Alibaba Cloud.
        Ipv4Addr::new(100, 100, 100, 200),
        // Azure's WireServer.
        Ipv4Addr::new(168, 63, 129, 16),
    ];
    if METADATA.contains(&address) {
        return Kind::Never;
    }
    match address.octets() {
        [0 | 127, ..] | [169, 254, ..] | [224..=255, ..] => Kind::Never,
        // Protocol assignments, documentation, 6to4 relays, benchmarks.
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18..=19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Kind::Never
        }
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Kind::Private,
        _ => Kind::Public,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    match address.segments() {
        // What a node offers to its own pods, credentials among it: Amazon's, Google Cloud's.
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => Kind::Never,
        [0xfc00..=0xfdff, ..] => Kind::Private,
        // Documentation (RFC 3849, RFC 9637), and what else of 2001::/23 is no host's.
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x2001, 0..=0x1ff, ..] => Kind::Never,
        // All that is assigned for hosts. The rest is loopback, unspecified, link-local, site-local, multicast,
        // discard and unassigned.
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Never,
    }
}

/// The IPv4 address that an IPv6 one stands for, or the address itself.
fn innermost(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        // IPv4-mapped (RFC 4291).
        [0, 0, 0, 0, 0, 0xffff, high, low] => v4(high, low),
        // IPv4-compatible, abandoned, but ::1 and :: are themselves.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        // NAT64 (RFC 6052), also translated (RFC 2765).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => v4(high, low),
        // Teredo (RFC 4380): the client's address, inverted.
        [0x2001, 0, _, _, _, _, high, low] => v4(!high, !low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(policy: &AddressPolicy, text: &str) -> Result<(), AddressError> {
        policy.check(text.parse().expect("an address"))
    }

    #[test]
    fn public_addresses_are_allowed() {
        let addresses =
            ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101"];
        for address in addresses {
            assert_eq!(check(&AddressPolicy::default(), address), Ok(()), "{address}");
        }
    }

    #[test]
    fn allow_private_does_not_allow_loopback_metadata_or_reserved() {
        let never = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            // Local NAT64 (RFC 8215): where the IPv4 address stands in it is the translator's choice (RFC 6052, 2.2).
            "64:ff9b:1::808:808",
            "64:ff9b:1:a9fe:a9:fe00:808:808",
            "2001:db8::1",
            "100::1",
            // The same, embedded in IPv6 addresses.
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:1:2:3:4:8056:5601",
            "::ffff:0:169.254.169.254",
        ];
        for allow_private in [false, true] {
            let policy = AddressPolicy { allow_private, ..Default::default() };
            for address in never {
                assert!(matches!(check(&policy, address), Err(AddressError::Never(_))), "{address}");
            }
        }
    }

    #[test]
    fn private_networks_are_allowed_by_allow_private() {
        let private = [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "fc00::1",
            "fd12::1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:a00:1::",
        ];
        let allowing = AddressPolicy { allow_private: true, ..Default::default() };
        for address in private {
            let denied = check(&AddressPolicy::default(), address);
            assert!(matches!(denied, Err(AddressError::Private(_))), "{address}");
            assert_eq!(check(&allowing, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn an_exception_is_for_its_network_only() {
        let policy =
            AddressPolicy { allow: vec!["127.0.0.0/30".parse().expect("a network")], ..Default::default() };
        assert_eq!(check(&policy, "127.0.0.1"), Ok(()));
        assert_eq!(check(&policy, "::ffff:127.0.0.1"), Ok(()));
        for address in ["127.0.0.5", "10.0.0.1", "::1", "169.254.169.254"] {
            assert!(check(&policy, address).is_err(), "{address}");
        }
    }

    proptest! {
        /// An IPv4 address is treated the same in every form in which it can be embedded in an IPv6 address.
        #[test]
        fn embedding_an_address_changes_nothing(v4: u32, allow_private: bool, middle: u16) {
            let policy = AddressPolicy { allow_private, ..Default::default() };
            let plain = policy.check(IpAddr::V4(v4.into())).is_ok();
            let (high, low) = ((v4 >> 16) as u16, v4 as u16);
            let embedded = [
                [0, 0, 0, 0, 0, 0xffff, high, low],
                [0x64, 0xff9b, 0, 0, 0, 0, high, low],
                [0, 0, 0, 0, 0xffff, 0, high, low],
                [0x2002, high, low, middle, 0, 0, 0, 1],
                [0x2001, 0, middle, 0, 0, 0, !high, !low],
            ];
            for segments in embedded {
                let address = Ipv6Addr::from(segments);
                prop_assert_eq!(policy.check(address.into()).is_ok(), plain, "{}", address);
            }
        }

        /// No address that the standard library knows as special is allowed.
        #[test]
        fn special_addresses_of_the_standard_library_are_not_allowed(v4: u32, v6: u128) {
            let policy = AddressPolicy::default();
            let v4 = Ipv4Addr::from(v4);
            let special = v4.is_loopback() || v4.is_link_local() || v4.is_private() || v4.is_multicast()
                || v4.is_unspecified() || v4.is_broadcast() || v4.is_documentation();
            prop_assert!(!special || policy.check(v4.into()).is_err(), "{}", v4);
            let v6 = Ipv6Addr::from(v6);
            let special = v6.is_loopback() || v6.is_multicast() || v6.is_unspecified()
                || v6.is_unicast_link_local() || v6.is_unique_local();
            prop_assert!(!special || policy.check(v6.into()).is_err(), "{}", v6);
        }
    }
}
