//! One manager: log, store, leader loops, dispatcher.
