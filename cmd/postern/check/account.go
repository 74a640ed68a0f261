package check

import (
	"context"
	"strings"

	"postern/admin/health"
	"postern/cmd/postern/screen"
)

var accountKinds = []kind{
	{"account.ok", health.OK, "", ""},
	{"account.none", health.Warning, "There is no user, so nobody can send mail.", "add one with 'postern user add'"},
	{"account.nobody", health.Warning, "No user can log in: all are disabled, or have no working credential.",
		"see 'postern user list'; use 'user enable', 'user passwd' or 'credential add'"},
	{"account.no-login", health.Warning, "An enabled user has no working credential.",
		"give one with 'postern user passwd' or 'credential add', or disable the user"},
	{"account.no-sender", health.Warning, "An enabled user has no address to send as: no pattern, and a name that is not an address.",
		"allow one with 'postern sender allow'"},
}

func (c *checkup) lookAtAccounts(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("accounts", "%v", err)
		return
	}
	var noLogin, noSender []string
	able := 0
	for _, u := range v.users {
		switch {
		case !u.Enabled:
			continue
		case u.Credentials == 0:
			noLogin = append(noLogin, u.Name)
		default:
			able++
		}
		if len(u.Senders) == 0 && !strings.Contains(u.Name, "@") {
			noSender = append(noSender, u.Name)
		}
	}
	switch {
	case len(v.users) == 0:
		r.add("account.none", "accounts", "no user")
	case able == 0 && !v.more:
		r.add("account.nobody", "accounts", "%s, and none can log in", screen.Count(len(v.users), "user"))
	default:
		r.add("account.ok", "accounts", "%d of %s can log in%s", able, screen.Count(len(v.users), "user"), moreThan(v.more))
	}
	if able > 0 && len(noLogin) > 0 {
		r.add("account.no-login", "accounts", "no working credential: %s", screen.Few(noLogin))
	}
	if len(noSender) > 0 {
		r.add("account.no-sender", "accounts", "no address: %s", screen.Few(noSender))
	}
}

func moreThan(more bool) string {
	if more {
		return "; others were not checked"
	}
	return ""
}
