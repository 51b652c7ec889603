//! The WebSocket to the controller's `/ws/server`, as the relay's core wants it.

use crate::dialler::ToController;
use crate::relay_shell::{RelayShell, UplinkEvent};
use edgelink_net::ws::{Event, Incoming, WebSocket, WsError};
use std::rc::Rc;
use tokio::sync::mpsc;

/// Configurations and locations come in messages of up to 8 MiB (DESIGN §1).
pub(crate) const MAX_MESSAGE: usize = 9 << 20;
/// A controller that lets so much wait is treated as gone.
const MAX_UNSENT: usize = 16 << 20;
/// RFC 6455 §7.4.1.
const NORMAL: u16 = 1000;

/// Connects, and connects again, whenever the core says so; never ends.
pub(crate) async fn run(shell: Rc<RelayShell>, controller: ToController, mut events: mpsc::Receiver<UplinkEvent>) {
    let mut away = false;
    while let Some(event) = events.recv().await {
        // Messages for a connection that has ended mean nothing.
        if !matches!(event, UplinkEvent::Dial) {
            continue;
        }
        controller.origins.tell(&shell.controllers());
        match controller.origins.dial(&controller.how, &controller.path).await {
            Ok((ws, origin)) => {
                tracing::info!(url = origin, "connected to the controller");
                controller.origins.remember(&origin);
                away = false;
                shell.controller_connected();
                if carry(&shell, ws, &mut events).await {
                    tracing::warn!("the connection to the controller ended; nodes are served on");
                    shell.controller_lost();
                }
            }
            Err(error) => {
                if std::mem::replace(&mut away, true) {
                    tracing::debug!(%error, "the controller is still away");
                } else {
                    tracing::warn!(%error, "the controller cannot be reached; nodes are served with what is known");
                }
                shell.controller_lost();
            }
        }
    }
}

/// Carries messages both ways. Tells whether the connection ended by itself; `false`: the core ended it.
async fn carry(shell: &Rc<RelayShell>, mut ws: WebSocket, events: &mut mpsc::Receiver<UplinkEvent>) -> bool {
    let outcome: Result<bool, WsError> = async {
        loop {
            let unsent = ws.unsent() > 0;
            tokio::select! {
                event = events.recv() => match event {
                    Some(UplinkEvent::Message(message)) if ws.unsent() <= MAX_UNSENT => ws.feed(message)?,
                    Some(UplinkEvent::Message(_)) => return Ok(true),
                    // The core dials only what it has ended before.
                    Some(UplinkEvent::Close | UplinkEvent::Dial) | None => return Ok(false),
                },
                event = ws.next(unsent) => match event? {
                    Event::Message(Incoming::Binary(message)) => shell.controller_message(&message),
                    Event::Message(Incoming::Text) | Event::Closed => return Ok(true),
                    Event::Writable => {}
                },
            }
        }
    }
    .await;
    match outcome {
        Ok(true) => true,
        Ok(false) => {
            ws.close(NORMAL, "").await;
            false
        }
        Err(error) => {
            tracing::debug!(%error, "connection to the controller lost");
            true
        }
    }
}
