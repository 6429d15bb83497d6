"""A client for store.redis.url, whatever it names."""

import urllib.parse

import redis
import redis.cluster
import redis.sentinel


def connect(url):
    """The server, the primary that Sentinels name, or the cluster."""
    scheme, rest = url.split("://", 1)
    if "-" not in scheme:
        return redis.Redis.from_url(url)
    rest, _, primary = rest.partition("#")
    hosts = [(host, int(port)) for host, _, port in (each.partition(":") for each in rest.split("/")[0].split(","))]
    if scheme == "redis-cluster":
        return redis.cluster.RedisCluster(startup_nodes=[redis.cluster.ClusterNode(*host) for host in hosts])
    return redis.sentinel.Sentinel(hosts).master_for(urllib.parse.unquote(primary))
