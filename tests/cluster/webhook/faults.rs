//! What goes wrong between a transition and its delivery.
