//! The closed tables of codes that cross the wire. Numbers are for ever: add at the end, never renumber or reuse.
//!
//! Number 0 of each table is what an unknown number is read as, so that a newer peer's code never breaks an older end.

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$code_doc:meta])* $variant:ident = $number:literal $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$code_doc])* $variant = $number,)+ }

        impl $name {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number on the wire.
            pub fn to_wire(self) -> u64 {
                self as u64
            }

            /// The code of a number; the table's entry 0 for a number that this version does not know.
            pub fn from_wire(number: u64) -> Self {
                Self::ALL.iter().copied().find(|code| code.to_wire() == number).unwrap_or(Self::ALL[0])
            }

            /// The name in logs, metrics and documents.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

codes! {
    /// Why an open (REFUSE) or a publication (ANSWER) was refused. A refused open delivered nothing.
    RefuseCode {
        /// No reason that this version knows.
        Unspecified = 0 "UNSPECIFIED",
        /// Nobody publishes this service and port here.
        UnknownService = 1 "UNKNOWN_SERVICE",
        /// The service is known here, but not from the provider that was named.
        NoProvider = 2 "NO_PROVIDER",
        /// The identity may not do this.
        Forbidden = 3 "FORBIDDEN",
        /// The backend refused the connection.
        BackendRefused = 4 "BACKEND_REFUSED",
        /// The backend did not answer in time.
        BackendTimeout = 5 "BACKEND_TIMEOUT",
        /// The backend's host or name cannot be reached.
        BackendUnreachable = 6 "BACKEND_UNREACHABLE",
        /// A configured limit is reached.
        Limit = 7 "LIMIT",
        /// The protocol version is not spoken here.
        UnsupportedVersion = 8 "UNSUPPORTED_VERSION",
        /// A protocol or flag of the request is not supported here.
        Unsupported = 9 "UNSUPPORTED",
        /// This end is stopping and takes nothing new.
        Draining = 10 "DRAINING",
        /// The request went over too many routers.
        TooManyHops = 11 "TOO_MANY_HOPS",
        /// The request could not be read.
        Malformed = 12 "MALFORMED",
        /// Only a repeated open came here, never the first one.
        NeverArrived = 13 "NEVER_ARRIVED",
    }
}

impl RefuseCode {
    /// Whether another provider or router may say yes to the same request.
    pub fn elsewhere(self) -> bool {
        !matches!(self, Self::Forbidden | Self::Malformed)
    }
}

codes! {
    /// Why a flow was cut (ABORT). The application on the other side sees an RST, never an end of file.
    AbortCode {
        /// No reason that this version knows.
        Unspecified = 0 "UNSPECIFIED",
        /// The consumer's application reset its connection.
        Reset = 1 "RESET",
        /// The provider's backend reset its connection.
        BackendReset = 2 "BACKEND_RESET",
        /// No leg came back within the resume window.
        WindowExpired = 3 "WINDOW_EXPIRED",
        /// The other end broke the flow protocol.
        Protocol = 4 "PROTOCOL",
        /// The other end does not know this flow: its process was restarted.
        PeerGone = 5 "PEER_GONE",
        /// A policy or a revoked identity forbids the flow now.
        Forbidden = 6 "FORBIDDEN",
        /// The process of this end is stopping.
        Shutdown = 7 "SHUTDOWN",
        /// A memory or time limit of this end.
        Limit = 8 "LIMIT",
    }
}

codes! {
    /// Why a flow cannot be resumed (GONE); also the terminator's last word on a flow that is complete.
    GoneCode {
        /// This end does not know the flow, or no longer.
        Unknown = 0 "UNKNOWN",
        /// Both directions were delivered to their end; counts as an acknowledgement of everything.
        Complete = 1 "COMPLETE",
        /// The flow was cut.
        Aborted = 2 "ABORTED",
        /// The resume window had passed.
        Expired = 3 "EXPIRED",
        /// A leg of the same or a higher generation was attached before.
        Stale = 4 "STALE",
        /// The proof, or the identity of the one who asks, is wrong.
        Forbidden = 5 "FORBIDDEN",
        /// The open was refused; it delivered nothing.
        Refused = 6 "REFUSED",
    }
}

codes! {
    /// Codes of QUIC RESET_STREAM and STOP_SENDING on the streams of flow legs. They end a leg, never a flow.
    ResetCode {
        /// No reason that this version knows; treated as `LEG_LOST`.
        Unspecified = 0 "UNSPECIFIED",
        /// A router lost the other side of the splice.
        LegLost = 1 "LEG_LOST",
        /// The end that opened the leg does not want it any more (given up, or fenced by a newer leg).
        Abandoned = 2 "ABANDONED",
        /// The frames on the stream could not be read.
        Protocol = 3 "PROTOCOL",
        /// The flow was cut and the other end need not read on.
        FlowEnded = 4 "FLOW_ENDED",
        /// A limit was hit before the header was read.
        Limit = 5 "LIMIT",
        /// The header did not arrive in time.
        HeaderTimeout = 6 "HEADER_TIMEOUT",
        /// The provider does not answer its router, which was handed the open and has no word of it: nobody else may be
        /// sent what followed it. To whom does not know the code it is `LEG_LOST`.
        ProviderSilent = 7 "PROVIDER_SILENT",
        /// As `FLOW_ENDED`, of a flow that was cut, with the code of its ABORT. The routers between the ends count it.
        Reset = 8 "RESET",
        /// See `RESET`.
        BackendReset = 9 "BACKEND_RESET",
        /// See `RESET`.
        WindowExpired = 10 "WINDOW_EXPIRED",
        /// See `RESET`.
        Broken = 11 "PROTOCOL",
        /// See `RESET`.
        PeerGone = 12 "PEER_GONE",
        /// See `RESET`.
        Forbidden = 13 "FORBIDDEN",
        /// See `RESET`.
        Shutdown = 14 "SHUTDOWN",
        /// See `RESET`.
        Exhausted = 15 "LIMIT",
    }
}

impl ResetCode {
    /// The last code on a leg of a flow that was cut.
    pub fn of(abort: AbortCode) -> Self {
        match abort {
            AbortCode::Unspecified => Self::FlowEnded,
            AbortCode::Reset => Self::Reset,
            AbortCode::BackendReset => Self::BackendReset,
            AbortCode::WindowExpired => Self::WindowExpired,
            AbortCode::Protocol => Self::Broken,
            AbortCode::PeerGone => Self::PeerGone,
            AbortCode::Forbidden => Self::Forbidden,
            AbortCode::Shutdown => Self::Shutdown,
            AbortCode::Limit => Self::Exhausted,
        }
    }

    /// Whether the flow was cut, and not only its leg.
    pub fn is_of_cut_flow(self) -> bool {
        self >= Self::Reset
    }
}

codes! {
    /// Codes of QUIC CONNECTION_CLOSE on connections of ALPN `keel/1`.
    CloseCode {
        /// No reason that this version knows.
        Unspecified = 0 "UNSPECIFIED",
        /// Nothing more to do.
        Done = 1 "DONE",
        /// The router stops or restarts; its flows go on elsewhere or when it is back.
        Restart = 2 "RESTART",
        /// The peer broke the protocol of the connection.
        Protocol = 3 "PROTOCOL",
        /// A limit on connections or handshakes.
        Limit = 4 "LIMIT",
        /// The identity is not welcome here, or its certificate has ended.
        Forbidden = 5 "FORBIDDEN",
        /// A newer connection of the same identity took over.
        Replaced = 6 "REPLACED",
    }
}
