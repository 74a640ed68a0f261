// Package rig runs the whole relay as it is run in earnest, to be hurt: the real
// binary in processes of its own, a durable PostgreSQL server, clients that submit
// under load and an upstream that takes what comes out.
//
//   - Rig is one installation: a database, a user, a route, nodes to be started,
//     killed, stopped and continued.
//   - Ledger is what the clients were told, Sink what the upstream was given,
//     History what the relay recorded.
//   - Check compares the three by the promises of the relay and names every breach.
//
// Nothing here shares code with relay/smtp, so that a defect there cannot hide
// itself here. All traffic is on loopback. Every wait has a deadline.
package rig
