// Package trial tries a smarthost from this machine as its nodes use it, without sending
// mail, and shows each step with what to do where it fails.
package trial
