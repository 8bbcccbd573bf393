//! What a pump does for an association: its end does the work of a socket.

use super::Pump;
use crate::flow::FlowStats;
use crate::udp::End;

impl Pump {
    /// Carries an association instead of a connection.
    pub(crate) fn set_udp(&mut self, end: End) {
        self.udp = Some(Box::new(end));
    }

    pub(crate) fn udp_mut(&mut self) -> Option<&mut End> {
        self.udp.as_deref_mut()
    }

    /// Counters of the application's bytes, those of datagrams included.
    pub(crate) fn stats(&self) -> FlowStats {
        let stats = self.flow.stats();
        let Some((written, delivered)) = self.udp.as_deref().map(End::counts) else {
            return stats;
        };
        FlowStats {
            written,
            delivered,
            ..stats
        }
    }
}
