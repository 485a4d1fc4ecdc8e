//! A transport without a network: the test is the network.

use super::{Reply, SentRequest};
use crate::{
    Flow, FlowError, FlowId, FlowInfo, Inbound, Message, Protocol, Received, Response, Target,
    Transport,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// A [`Transport`] whose other end is a [`Wire`]
///
/// Our end of every flow is 192.0.2.1:5060.
#[derive(Debug)]
pub struct MockTransport {
    protocols: Vec<Protocol>,
    shared: Arc<Shared>,
}

/// What goes over a [`MockTransport`], in the hands of a test
///
/// Works with tokio's paused time.
#[derive(Debug)]
pub struct Wire {
    requests: mpsc::UnboundedReceiver<SentRequest>,
    responses: mpsc::UnboundedReceiver<Response>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    requests: mpsc::UnboundedSender<SentRequest>,
    responses: mpsc::UnboundedSender<Response>,
}

#[derive(Debug, Default)]
struct State {
    inbound: Option<Inbound>,
    flows: HashMap<FlowId, SocketAddr>,
    refusals: VecDeque<FlowError>,
    full: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(&self, received: Received) {
        let inbound = self.state().inbound.clone();
        if let Some(inbound) = inbound {
            inbound.received(&mut vec![received]).await;
        }
    }
}

impl MockTransport {
    /// A transport for UDP, and its other end.
    #[must_use]
    pub fn new() -> (Self, Wire) {
        let (sender, requests) = mpsc::unbounded_channel();
        let (answerer, responses) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            requests: sender,
            responses: answerer,
        });
        (
            Self {
                protocols: vec![Protocol::Udp],
                shared: Arc::clone(&shared),
            },
            Wire {
                requests,
                responses,
                shared,
            },
        )
    }

    /// Sets the protocol it speaks; default UDP.
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocols = vec![protocol];
        self
    }
}

#[async_trait]
impl Transport for MockTransport {
    fn protocols(&self) -> &[Protocol] {
        &self.protocols
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        self.shared.state().inbound = Some(inbound);
        Ok(())
    }

    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        let mut state = self.shared.state();
        if let Some(error) = state.refusals.pop_front() {
            return Err(error);
        }
        state.flows.insert(id, to.address());
        let local = SocketAddr::from(([192, 0, 2, 1], 5060));
        let info = FlowInfo::new(to.protocol(), local, to.address());
        Ok(Arc::new(MockFlow {
            id,
            target: to.clone(),
            info,
            shared: Arc::clone(&self.shared),
        }))
    }
}

#[derive(Debug)]
struct MockFlow {
    id: FlowId,
    target: Target,
    info: FlowInfo,
    shared: Arc<Shared>,
}

impl Flow for MockFlow {
    fn info(&self) -> &FlowInfo {
        &self.info
    }

    fn send(&self, message: Bytes) -> Result<(), FlowError> {
        let mut state = self.shared.state();
        if state.full > 0 {
            state.full -= 1;
            return Err(FlowError::Full);
        }
        if !state.flows.contains_key(&self.id) {
            return Err(FlowError::Closed);
        }
        drop(state);
        // Where nobody looks any more, it is lost on the wire.
        match Message::parse(message) {
            Ok(Message::Request(request)) => {
                let sent = SentRequest::new(request, self.id, self.target.clone());
                let _ = self.shared.requests.send(sent);
            }
            Ok(Message::Response(response)) => drop(self.shared.responses.send(response)),
            Err(_) => {}
        }
        Ok(())
    }

    fn close(&self) {
        self.shared.state().flows.remove(&self.id);
    }
}

impl Wire {
    /// Waits for the next request; for ever where none comes, so put a timeout around it where that is the question.
    pub async fn next_request(&mut self) -> SentRequest {
        // This end keeps the channel open itself.
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// The next request, where one was sent already.
    pub fn try_request(&mut self) -> Option<SentRequest> {
        self.requests.try_recv().ok()
    }

    /// Waits for the next response that the agent gives to what was [pushed](Self::push).
    pub async fn next_response(&mut self) -> Response {
        match self.responses.recv().await {
            Some(response) => response,
            None => std::future::pending().await,
        }
    }

    /// Answers a request from where it went.
    pub async fn reply(&self, to: &SentRequest, reply: impl Into<Reply>) {
        self.push(to, reply.into().to(to)).await;
    }

    /// A message from where `like` went, on the same flow.
    pub async fn push(&self, like: &SentRequest, message: impl Into<Bytes>) {
        self.shared
            .receive(Received::new(like.target().address(), message.into()).with_flow(like.flow()))
            .await;
    }

    /// A message from anywhere, on no known flow.
    pub async fn push_from(&self, source: SocketAddr, message: impl Into<Bytes>) {
        self.shared
            .receive(Received::new(source, message.into()))
            .await;
    }

    /// Ends one flow.
    pub async fn fail(&self, flow: FlowId, error: FlowError) {
        let inbound = {
            let mut state = self.shared.state();
            let known = state.flows.remove(&flow).is_some();
            state.inbound.clone().filter(|_| known)
        };
        if let Some(inbound) = inbound {
            inbound.failed(flow, error).await;
        }
    }

    /// Ends every flow.
    pub async fn fail_all(&self, error: FlowError) {
        for flow in self.flows() {
            self.fail(flow, error.clone()).await;
        }
    }

    /// The flows that are up, in the order they were made.
    #[must_use]
    pub fn flows(&self) -> Vec<FlowId> {
        let mut flows: Vec<_> = self.shared.state().flows.keys().copied().collect();
        flows.sort_unstable();
        flows
    }

    /// The next flow cannot be made; called twice, the next two cannot.
    pub fn refuse_next_open(&self, error: FlowError) {
        self.shared.state().refusals.push_back(error);
    }

    /// The next message finds the send queue full; called twice, the next two do.
    pub fn full_next_send(&self) {
        self.shared.state().full += 1;
    }
}
