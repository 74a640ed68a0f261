package check

import (
	"context"
	"errors"

	"postern/admin"
	"postern/admin/health"
)

var adminKinds = []kind{
	{"admin.ready", health.OK, "", ""},
	{"admin.idle", health.OK, "", ""},
	{"admin.unready", health.Warning, "The running server says that it is not ready, and why.",
		"correct what it names; load balancers send it no clients until then"},
	{"admin.foreign", health.Warning, "Another program uses the address of [admin], so health and metrics are not served.",
		"stop it, or give [admin] another address"},
	{"admin.token", health.Failed, "The token of [admin] cannot be used, so the server does not start.",
		"write one word of at least 16 characters into token_file, with mode 640 and the server's group"},
	{"admin.token-readable", health.Warning, "Every local user may read the token of [admin].", "chmod 640 the file and give it to the server's group"},
	{"admin.off", health.Info, "Health and metrics are not served.", ""},
}

// lookAtAdmin asks a running server how it is.
func (c *checkup) lookAtAdmin(ctx context.Context, r *report) {
	a := c.cfg.Admin
	if a.Address == "" {
		r.add("admin.off", "admin", "[admin] address is empty")
		return
	}
	if a.TokenFile != "" {
		exposed := func(err error) { r.add("admin.token-readable", "admin", "%v", err) }
		if _, err := admin.ReadToken(a.TokenFile, exposed); err != nil {
			r.add("admin.token", "admin", "%v", err)
		}
	}
	err := Ready(ctx, a.Address)
	var unready *unreadyError
	switch {
	case err == nil:
		r.add("admin.ready", "admin", "the server at %s is ready", a.Address)
	case errors.As(err, &unready) && unready.ours:
		r.add("admin.unready", "admin", "%v", err)
	case isRefused(err):
		r.add("admin.idle", "admin", "nothing answers at %s", a.Address)
	default:
		r.add("admin.foreign", "admin", "%v", err)
	}
}
