package main

import (
	"cmp"
	"net/url"
	"os/user"
	"path/filepath"
	"strings"

	"postern/internal/owned"
)

// exposed logs that everybody may read a secret of this node.
func (n *node) exposed(err error) {
	n.log.Warn("a secret is open to others", "error", err)
}

// exposedDatabase finds which files with a secret of the database everybody may read: the
// configuration with a password in its URL, the file of passwords (.pgpass), and the key
// of a client's certificate.
func (a *app) exposedDatabase(databaseURL string) (open []error) {
	var files []string
	if path := a.configFile(); path != "" {
		// Without what the environment puts in its place.
		if cfg, err := readConfig(path); err == nil && hasPassword(cfg.Database.URL) {
			files = append(files, path)
		}
	}
	if databaseURL != "" {
		files = append(files, cmp.Or(urlSetting(databaseURL, "passfile"), a.env["PGPASSFILE"], passfile()),
			cmp.Or(urlSetting(databaseURL, "sslkey"), a.env["PGSSLKEY"]))
	}
	for _, path := range files {
		if path != "" {
			_, err := owned.ReadSecret(path, func(err error) { open = append(open, err) })
			if owned.IsFault(err) {
				open = append(open, err)
			}
		}
	}
	return open
}

// passfile is where passwords are looked for when nothing else is said, "" for nowhere.
func passfile() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return filepath.Join(u.HomeDir, ".pgpass")
}

// hasPassword reports that a database URL, of either form, has a password in it.
func hasPassword(databaseURL string) bool {
	if strings.Contains(databaseURL, "password=") { // or sslpassword
		return true
	}
	u, err := url.Parse(databaseURL)
	if err != nil || u.User == nil {
		return false
	}
	_, has := u.User.Password()
	return has
}

// urlSetting is a setting of a database URL, of either form.
func urlSetting(databaseURL, key string) string {
	if u, err := url.Parse(databaseURL); err == nil && u.Scheme != "" {
		return u.Query().Get(key)
	}
	for _, word := range strings.Fields(databaseURL) {
		if value, ok := strings.CutPrefix(word, key+"="); ok {
			return strings.Trim(value, "'")
		}
	}
	return ""
}
