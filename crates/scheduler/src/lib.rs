//! Filter, spread and explain: which node a task goes to, or why none.
