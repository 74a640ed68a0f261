// Package acmetest runs an ACME authority and a name server for tests. The authority
// is Pebble, Let's Encrypt's own test authority, in this process: it validates over
// real connections. Around it are what a test needs to hurt its clients: it can be
// taken down and up again, an order can be held where it is, requests are counted.
//
// Validations come to one port of the authority's choosing and are passed on to
// whichever address the test says, as by a balancer. Names ending in .test are at
// 127.0.0.1 for it.
package acmetest
