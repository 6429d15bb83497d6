//! Where the server is: the one of the URL, the primary that Sentinels name, or the node of a cluster that has a slot.
//!
//! Sentinel: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>,
//! Cluster: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.

use std::sync::Mutex;

use redis::{ConnectionInfo, IntoConnectionInfo, Value};

/// Host and port.
pub type Address = (String, u16);

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

pub enum Place {
    Server,
    Sentinel { sentinels: Vec<Address>, primary: String },
    Cluster(Nodes),
}

/// The nodes of a cluster that are known: those of the URL, and those that were named last.
pub struct Nodes {
    seeds: Vec<Address>,
    named: Mutex<(Vec<Address>, usize)>,
}

impl Nodes {
    fn new(seeds: Vec<Address>) -> Self {
        Self { seeds, named: Mutex::default() }
    }

    /// All of them. Each time another one comes first, because one may be cut off from the rest and not know it.
    pub fn all(&self) -> Vec<Address> {
        let mut named = self.named.lock().expect("no panic under this lock");
        let (nodes, first) = &mut *named;
        let mut all = nodes.clone();
        all.extend(self.seeds.iter().filter(|seed| !nodes.contains(seed)).cloned());
        let length = all.len();
        all.rotate_left(*first % length);
        *first += 1;
        all
    }

    /// Forgets those that are no longer named: their addresses may be somebody else's by now.
    pub fn learn(&self, named: Vec<Address>) {
        self.named.lock().expect("no panic under this lock").0 = named;
    }
}

/// Takes a URL apart: credentials, database and TLS, as every server is reached, and where the servers are.
pub fn parse(url: &str) -> Result<(ConnectionInfo, Place), String> {
    let invalid = |error: &dyn std::fmt::Display| {
        format!(
            "store.redis.url is not usable: {error}; write redis://HOST:PORT/DB, unix:///PATH, \
             redis-sentinel://HOST:PORT,HOST:PORT/DB#PRIMARY or redis-cluster://HOST:PORT,HOST:PORT, with rediss for TLS"
        )
    };
    let several = url.split_once("://").and_then(|(scheme, rest)| Some((scheme.split_once('-')?, rest)));
    let Some(((scheme, kind), rest)) = several else {
        let info = url.into_connection_info().map_err(|error| invalid(&error))?;
        return Ok((info, Place::Server));
    };
    let (rest, primary) = rest.split_once('#').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let default_port = if kind == "sentinel" { SENTINEL_PORT } else { REDIS_PORT };
    let addresses: Option<Vec<Address>> = hosts.split(',').map(|host| parse_address(host, default_port)).collect();
    let addresses = addresses.ok_or_else(|| invalid(&"a host is missing or a port is not a number"))?;
    let at = if user.is_empty() { String::new() } else { format!("{user}@") };
    let first = hosts.split(',').next().unwrap_or_default();
    let info = format!("{scheme}://{at}{first}/{database}").into_connection_info().map_err(|error| invalid(&error))?;
    let place = match kind {
        "sentinel" if primary.is_empty() => return Err(invalid(&"the name of the primary is missing behind #")),
        "sentinel" => Place::Sentinel { sentinels: addresses, primary: primary.to_owned() },
        "cluster" if !matches!(database, "" | "0") => return Err(invalid(&"a cluster has one database, 0")),
        "cluster" => Place::Cluster(Nodes::new(addresses)),
        _ => return Err(invalid(&format_args!("{scheme}-{kind} is not a scheme"))),
    };
    Ok((info, place))
}

fn parse_address(text: &str, default_port: u16) -> Option<Address> {
    // An IPv6 address has colons of its own, and stands in brackets.
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// An answer of `CLUSTER SLOTS`: who has a slot, and every node that is named. A node that does not know its own address means the one
/// that was asked.
pub fn owner(answer: &Value, slot: u16, asked: &Address) -> (Option<Address>, Vec<Address>) {
    let (mut owner, mut named) = (None, Vec::new());
    let Value::Array(ranges) = answer else { return (None, named) };
    for range in ranges {
        let Value::Array(parts) = range else { continue };
        let [Value::Int(first), Value::Int(last), nodes @ ..] = &parts[..] else { continue };
        for (index, node) in nodes.iter().enumerate() {
            let Value::Array(node) = node else { continue };
            let [host, Value::Int(port), ..] = &node[..] else { continue };
            let host = match host {
                Value::BulkString(host) if ![&b""[..], b"?"].contains(&&host[..]) => {
                    String::from_utf8_lossy(host).into_owned()
                }
                _ => asked.0.clone(),
            };
            let address = (host, *port as u16);
            if index == 0 && (*first..=*last).contains(&i64::from(slot)) {
                owner = Some(address.clone());
            }
            if !named.contains(&address) {
                named.push(address);
            }
        }
    }
    (owner, named)
}

#[cfg(test)]
mod tests {
    use redis::ConnectionAddr;

    use super::*;

    #[test]
    fn urls_say_where_the_servers_are() {
        let (info, place) = parse("redis://host:1234/3").unwrap();
        assert!(matches!(place, Place::Server) && info.redis_settings().db() == 3);
        let (info, place) = parse("rediss-sentinel://user:p%40ss@a,[::1]:7000/2#main").unwrap();
        let Place::Sentinel { sentinels, primary } = place else { panic!("sentinels") };
        assert_eq!(sentinels, [("a".to_owned(), 26379), ("::1".to_owned(), 7000)]);
        assert_eq!((primary.as_str(), info.redis_settings().db()), ("main", 2));
        assert_eq!(info.redis_settings().password(), Some("p@ss"));
        assert!(matches!(info.addr(), ConnectionAddr::TcpTls { .. }));
        let (_, place) = parse("redis-cluster://a:1,b").unwrap();
        let Place::Cluster(nodes) = place else { panic!("a cluster") };
        let (a, b) = (("a".to_owned(), 1), ("b".to_owned(), 6379));
        let c = ("c".to_owned(), 2);
        assert_eq!(nodes.all(), [a.clone(), b.clone()]);
        nodes.learn(vec![a.clone(), c.clone()]);
        assert_eq!(nodes.all(), [c, b.clone(), a.clone()]);
        nodes.learn(Vec::new());
        assert_eq!(nodes.all(), [a, b]);
        for (url, why) in [
            ("redis-sentinel://a", "behind #"),
            ("redis-cluster://a/3", "one database"),
            ("redis-cluster://a:x", "port"),
            ("redis-cluster://", "host"),
            ("redis-ring://a", "not a scheme"),
            ("http://a", "not usable"),
        ] {
            let error = parse(url).err().unwrap_or_default();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn slots_have_owners() {
        let node = |host: &str, port: i64| {
            Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString("id".into())])
        };
        let range = |first: i64, last: i64, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let answer =
            Value::Array(vec![range(0, 99, vec![node("a", 1), node("b", 2)]), range(100, 16_383, vec![node("", 3)])]);
        let asked = ("asked".to_owned(), 9);
        assert_eq!(owner(&answer, 99, &asked).0, Some(("a".to_owned(), 1)));
        let (found, named) = owner(&answer, 100, &asked);
        assert_eq!(found, Some(("asked".to_owned(), 3)));
        assert_eq!(named.len(), 3);
        assert_eq!(owner(&Value::Array(vec![]), 0, &asked).0, None);
    }
}
