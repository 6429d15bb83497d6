//! Where the server is: the one of the URL, the primary that Sentinels name, or the node of a
//! cluster that has a slot.
//!
//! Sentinel: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>,
//! Cluster: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.

use std::sync::Mutex;

use redis::{ConnectionInfo, IntoConnectionInfo, Value};

use traqq_core::error::{ConfigError, ErrorLine};

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

    /// All of them. Each time another one comes first, because one may be cut off from the rest and
    /// not know it.
    pub fn all(&self) -> Vec<Address> {
        let mut named = self.named.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
        self.named.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0 = named;
    }
}

/// What stands in a URL, each part as it was written.
struct Parts<'a> {
    scheme: &'a str,
    /// `sentinel`, `cluster`, or empty for one server.
    kind: &'a str,
    /// User and password, with their `@`, or nothing.
    user: &'a str,
    hosts: &'a str,
    /// Behind the hosts, or the socket.
    path: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    fragment: &'a str,
}

impl<'a> Parts<'a> {
    /// `Err` has nothing in it that may be a part of a password.
    fn of(url: &'a str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once(':').ok_or("it has no scheme")?;
        let (scheme, kind) = scheme.split_once('-').unwrap_or((scheme, ""));
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let is_socket = scheme.ends_with("unix");
        let (authority, path) = match rest.strip_prefix("//") {
            _ if is_socket => ("", rest),
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => return Err("there is no // behind its scheme"),
        };
        // A socket's password may have one: there it is a parameter.
        if !is_socket && [path, query, fragment].iter().any(|part| part.contains('@')) {
            return Err(
                "a password with one of / ? # @ % in it is written in percent-encoding, or set as store.redis.password",
            );
        }
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
        let parameters = parameters.map(|parameter| parameter.split_once('=').unwrap_or(("", parameter))).collect();
        Ok(Self { scheme, kind, user, hosts, path, parameters, fragment })
    }

    /// Refuses what nobody would look at; the database, if a parameter says which.
    fn database(&self) -> Result<i64, ErrorLine> {
        let is_socket = self.scheme.ends_with("unix");
        let number = |text: &str| -> Result<i64, ErrorLine> {
            match text.parse::<u32>() {
                Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(i64::from(number)),
                _ => Err("the database is not a number".into()),
            }
        };
        let path = self.path.trim_end_matches('/');
        let by_path = if is_socket || path.is_empty() { None } else { Some(number(path)?) };
        let mut by_parameter = None;
        for (index, (name, value)) in self.parameters.iter().enumerate() {
            if self.parameters[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err("a parameter stands twice in it".into());
            }
            match *name {
                "db" => by_parameter = Some(number(value)?),
                "protocol" if matches!(*value, "2" | "resp2") => {}
                "protocol" => return Err("protocol=resp2 is the one that is spoken".into()),
                "user" | "pass" if is_socket => {}
                "" => return Err("a parameter has no value".into()),
                // One that has no name shaped like one may be a part of a password.
                name => {
                    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                    let which =
                        if is_name { format!("the parameter {name}") } else { "one of its parameters".to_owned() };
                    return Err(format!(
                        "{which} would not be looked at; db and protocol are, and user and pass behind a socket"
                    )
                    .into());
                }
            }
        }
        match (by_path, by_parameter) {
            (Some(path), Some(parameter)) if path != parameter => Err("it names two databases".into()),
            (path, parameter) => Ok(path.or(parameter).unwrap_or(0)),
        }
    }
}

/// Takes a URL apart: credentials, database and TLS, as every server is reached, and where the
/// servers are. Whatever stands in it is either looked at or refused.
pub fn parse(url: &str) -> Result<(ConnectionInfo, Place), ConfigError> {
    let invalid = |line: ErrorLine| {
        ConfigError::from(line.within("store.redis.url is not usable").followed_by(
            "; write redis://HOST:PORT/DB, unix:///PATH?db=DB, redis-sentinel://HOST:PORT,HOST:PORT/DB#PRIMARY or \
             redis-cluster://HOST:PORT,HOST:PORT, with rediss for TLS",
        ))
    };
    let parts = Parts::of(url).map_err(|error| invalid(error.into()))?;
    let database = parts.database().map_err(invalid)?;
    let Parts { scheme, kind, user, hosts, fragment, .. } = parts;
    match (kind, fragment) {
        ("sentinel", "") => return Err(invalid("the name of the primary is missing behind #".into())),
        ("sentinel", name) if name.contains(['?', '/', '&']) => {
            return Err(invalid("parameters stand in front of # and the name of the primary".into()));
        }
        ("sentinel", _) | (_, "") => {}
        (_, "insecure") => {
            return Err(invalid(
                "#insecure would trust whoever answers; set store.redis.tls_ca_file to the authority".into(),
            ));
        }
        _ => return Err(invalid("what stands behind # would not be looked at".into())),
    }
    if kind.is_empty() && hosts.contains(',') {
        return Err(invalid("several addresses are those of Sentinels or of a cluster".into()));
    }
    if kind.is_empty() && scheme.ends_with("unix") {
        let info = url.into_connection_info().map_err(|error| invalid(ErrorLine::from_error(error)))?;
        return Ok((info, Place::Server));
    }
    let default_port = if kind == "sentinel" { SENTINEL_PORT } else { REDIS_PORT };
    let addresses: Option<Vec<Address>> = hosts.split(',').map(|host| parse_address(host, default_port)).collect();
    let addresses = addresses.ok_or_else(|| invalid("a host is missing or a port is not a number".into()))?;
    let first = hosts.split(',').next().unwrap_or_default();
    let info = format!("{scheme}://{user}{first}/{database}")
        .into_connection_info()
        .map_err(|error| invalid(ErrorLine::from_error(error)))?;
    let place = match kind {
        "" => Place::Server,
        "sentinel" => Place::Sentinel { sentinels: addresses, primary: fragment.to_owned() },
        "cluster" if database != 0 => return Err(invalid("a cluster has one database, 0".into())),
        "cluster" => Place::Cluster(Nodes::new(addresses)),
        _ => return Err(invalid("its scheme is none of these".into())),
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

/// An answer of `CLUSTER SLOTS`: who has a slot, and every node that is named. A node that does not
/// know its own address means the one that was asked.
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
            ("redis-ring://a", "none of these"),
            ("http://a", "not usable"),
            ("a:6379", "no //"),
            ("a", "no scheme"),
        ] {
            let error = parse(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    /// Everything behind the host used to be ignored, so that `?db=5` counted in database 0.
    #[test]
    fn what_stands_in_a_url_is_looked_at_or_refused() {
        for (url, database) in [
            ("redis://a", 0),
            ("redis://a/", 0),
            ("redis://a/3", 3),
            ("redis://a/3/", 3),
            ("redis://a?db=5", 5),
            ("rediss://u:p@a:1/?db=5", 5),
            ("redis://a/5?db=5&protocol=2", 5),
            ("redis://a?protocol=resp2", 0),
            ("unix:///s", 0),
            ("unix:///s?db=5&user=u&pass=p%40q", 5),
            ("redis+unix:///s?db=5", 5),
            ("redis-sentinel://a,b?db=5#main", 5),
            ("rediss-sentinel://a,b/5?db=5#main", 5),
            ("redis-cluster://a,b?db=0", 0),
            ("redis-cluster://a,b/0", 0),
        ] {
            let (info, _) = parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(info.redis_settings().db(), database, "{url}");
        }
        let (info, _) = parse("unix:///s?user=u&pass=p%40q").unwrap();
        assert_eq!((info.redis_settings().username(), info.redis_settings().password()), (Some("u"), Some("p@q")));
        for place in ["redis://a", "rediss://a", "unix:///s", "redis-sentinel://a,b", "redis-cluster://a,b"] {
            let end = if place.contains("sentinel") { "#main" } else { "" };
            for (query, why) in [
                ("db=x", "not a number"),
                ("db=", "not a number"),
                ("db=-1", "not a number"),
                ("db=+1", "not a number"),
                ("db=0&db=0", "twice"),
                ("protocol=resp3", "resp2"),
                ("zq9", "no value"),
                ("ssl_cert_reqs=none", "ssl_cert_reqs"),
                ("timeout=5", "timeout"),
                ("Zq9=1", "one of its parameters"),
            ] {
                let error =
                    parse(&format!("{place}?{query}{end}")).err().map(|error| error.to_string()).unwrap_or_default();
                assert!(error.contains(why) && !error.to_lowercase().contains("zq9"), "{place}?{query}: {error}");
            }
        }
        for (url, why) in [
            ("redis://a/3?db=5", "two databases"),
            ("redis://a/notanumber", "not a number"),
            ("redis://a/3/4", "not a number"),
            ("redis://a?user=u", "user"),
            ("redis-sentinel://a/x#main", "not a number"),
            ("redis-sentinel://a#main?db=5", "in front of #"),
            ("redis-cluster://a?db=5", "one database"),
            ("redis://a#main", "behind #"),
            ("redis-cluster://a#main", "behind #"),
            ("unix:///s#main", "behind #"),
            ("rediss://a#insecure", "tls_ca_file"),
            ("redis://a,b", "Sentinels"),
            ("redis://:zq9#x@a", "percent-encoding"),
            ("redis://:zq9?x@a", "percent-encoding"),
            ("redis://:zq9/x@a", "percent-encoding"),
        ] {
            let error = parse(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(why) && !error.contains("zq9"), "{url}: {error}");
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
