// Package resolver asks the DNS: one client and one cache for a node.
//
// A question has one of three outcomes, and no caller may take one for another: an answer; the
// definite answer that there is no such record ([ErrNone]); and anything else, which says nothing
// about the name and is temporary: SERVFAIL, REFUSED, no answer in time, a name server that is
// not responsible, aliases without an end, no descriptor left.
//
// A resolver asks for DNSSEC data (RFC 4035) and validates nothing itself. It believes the AD bit
// of a name server only when the way to all servers is safe (loopback, or Config.Trusted) and
// after this server has proved that it validates: see [Resolver.Validation]. Everything else is
// not Secure, so a server that does not validate turns DANE off; the log, a metric and check say so.
//
// Bounds: one question at a time for the same name and type, maxAsked questions at the
// same time, a cache of maxEntries answers and maxOctets, answers kept for at most maxTTL.
//
// It knows nothing of mail beyond the types of records, and nothing of hosts files but for
// [Resolver.Local].
package resolver
