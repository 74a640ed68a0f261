// Package smtptest is the foreign world of SMTP for tests, on loopback only.
//
//   - RunDialog plays the client of a golden dialog file against a server under
//     test.
//   - Server is a fake SMTP server that records what it takes and misbehaves on
//     cue.
//   - CA makes certificates; Resolver answers MX and address queries.
//
// It shares no code with relay/smtp, so that a defect there cannot hide itself
// here. Everything waits for signals with a deadline, nothing sleeps, and every
// wait that fails says what was seen instead.
package smtptest
