//! Names to targets, asked once for all.

use super::*;

impl Pool {
    /// Where a request goes: literals at once, names by the cache or the resolver.
    pub(super) fn locate(&mut self, cx: &mut Out<'_>, asker: Asker, uri: &SipUri) {
        let named = self
            .registration(asker.id)
            .and_then(|registration| registration.transport().cloned());
        let protocols = match &named {
            None => None,
            Some(name) => match self.transports.iter().find(|(known, _)| **known == **name) {
                Some((_, protocols)) => Some(protocols.clone()),
                None => {
                    let error = ResolveError::Failed(format!("no transport named {name:?}").into());
                    return self.handle(
                        cx,
                        asker.id,
                        Input::Located {
                            op: asker.op,
                            result: Err(error),
                        },
                    );
                }
            },
        };
        // With `sips` in the Request-URI a route is followed as if it said `sips` (RFC 3261 §8.1.2).
        let sips = uri.scheme() == Scheme::Sips
            || self
                .registration(asker.id)
                .is_some_and(|registration| registration.is_sips());
        let first = protocols.as_deref().and_then(<[_]>::first);
        let protocol = match (uri.transport().map(Protocol::from_name), first) {
            (Some(protocol), _) => protocol,
            (None, Some(protocol)) => Some(*protocol),
            (None, None) if sips => Some(Protocol::Tls),
            (None, None) => Some(Protocol::Udp),
        };
        let protocol = match protocol {
            // What `tcp` says of `sips` is what TLS runs on (RFC 3261 §26.2.2).
            Some(Protocol::Tcp | Protocol::Tls) if sips => Some(Protocol::Tls),
            other => other.filter(|protocol| !sips || protocol.is_secure()),
        };
        let Some(protocol) = protocol else {
            let error = ResolveError::Failed(
                format!("no transport for {}", crate::uri::excerpt(uri.as_str())).into(),
            );
            return self.handle(
                cx,
                asker.id,
                Input::Located {
                    op: asker.op,
                    result: Err(error),
                },
            );
        };
        let wanted = Wanted {
            protocol,
            port: uri.port().unwrap_or_else(|| protocol.default_port()),
            host: uri.host().into(),
        };
        let host: Arc<str> = uri
            .param("maddr")
            .flatten()
            .unwrap_or_else(|| uri.host())
            .into();
        if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            let result = Ok(targets(&[ip], &wanted));
            return self.handle(
                cx,
                asker.id,
                Input::Located {
                    op: asker.op,
                    result,
                },
            );
        }
        let query = Query::new(Arc::clone(&host));
        let result = match self.names.get_mut(&query) {
            Some(Name::Asked(askers)) => return askers.push((asker, wanted)),
            Some(Name::Known { addresses, until }) if cx.now < *until => {
                Ok(targets(addresses, &wanted))
            }
            Some(Name::Failed { error, until }) if cx.now < *until => Err(error.clone()),
            _ => {
                self.names
                    .insert(query.clone(), Name::Asked(vec![(asker, wanted)]));
                return cx.out.push(PoolOutput::Resolve(query));
            }
        };
        self.handle(
            cx,
            asker.id,
            Input::Located {
                op: asker.op,
                result,
            },
        );
    }

    /// The answer to [`PoolOutput::Resolve`].
    pub fn resolved(
        &mut self,
        cx: &mut Out<'_>,
        query: &Query,
        result: Result<Answer, ResolveError>,
    ) {
        let Some((key, Name::Asked(askers))) = self.names.remove_entry(query) else {
            return;
        };
        let name = match &result {
            Ok(answer) => Name::Known {
                addresses: answer.addresses().to_vec(),
                until: cx.now + answer.ttl.min(LONGEST_TTL),
            },
            Err(error) => Name::Failed {
                error: error.clone(),
                until: cx.now + NAME_FAILED,
            },
        };
        self.names.insert(key, name);
        for (asker, wanted) in askers {
            let result = match &result {
                Ok(answer) => Ok(targets(answer.addresses(), &wanted)),
                Err(error) => Err(error.clone()),
            };
            self.handle(
                cx,
                asker.id,
                Input::Located {
                    op: asker.op,
                    result,
                },
            );
        }
    }
}

fn targets(addresses: &[IpAddr], wanted: &Wanted) -> Vec<Target> {
    addresses
        .iter()
        .map(|ip| {
            Target::new(wanted.protocol, SocketAddr::new(*ip, wanted.port))
                .with_host(Arc::clone(&wanted.host))
        })
        .collect()
}
