package check

import (
	"context"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/relay/keyring"
)

var keyKinds = []kind{
	{"key.sealed", health.OK, "", ""},
	{"key.lacking", health.Failed, "A node's file lacks the key that is in use, so it cannot open what the others seal.",
		"copy secret_key_file of a node that has the key; 'postern key list' shows which"},
	{"key.differ", health.Warning, "The nodes' files have different keys.", "copy secret_key_file of the node with the newest key to the others"},
	{"key.old", health.Warning, "A key still seals values a day after another came into use.",
		"see the nodes' logs for why they do not re-seal them; then 'postern key remove'"},
	{"key.unopened", health.Failed, "No key of this machine opens a value that is sealed in the database.",
		"copy the key file of the node where it was sealed, or set the secret again, as with 'postern upstream set'"},
}

func (c *checkup) lookAtKeys(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err == nil {
		err = v.keyErr
	}
	if err != nil {
		r.skip("keys", "%v", err)
		return
	}
	c.keys(r, v.keys)
}

func (c *checkup) keys(r *report, v *keyring.View) {
	path, sealed := c.source.SecretKeyPath(c.cfg), 0
	for _, k := range v.Keys {
		sealed += k.Values
		subject, lacking := "key "+k.ID, v.Lacking(k.ID)
		if k.State == "missing" {
			lacking = append(lacking, path)
		}
		switch {
		case k.ID == v.Current && len(lacking) > 0:
			r.add("key.lacking", subject, "missing at %s", screen.Few(lacking))
		case len(k.Nodes) > 0 && len(lacking) > 0:
			r.add("key.differ", subject, "%s lacks it, %s has it", screen.Few(lacking), screen.Few(k.Nodes))
		case k.ID != v.Current && k.Values > 0 && v.Age > 24*time.Hour:
			r.add("key.old", subject, "%s, and key %s is in use for %s", screen.Count(k.Values, "value"), v.Current, v.Age.Round(time.Hour))
		}
	}
	if v.Unopened != nil {
		r.add("key.unopened", "keys", "these do not open with the key %s: %s", path, screen.Few(v.Unopened))
		return
	}
	r.add("key.sealed", "keys", "this machine can open what is sealed: %s", screen.Count(sealed, "value"))
}
