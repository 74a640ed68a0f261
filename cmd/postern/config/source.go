package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"postern/internal/owned"
	"postern/relay/seal"
)

// defaultConfigPaths are tried in this order when --config is not given.
var defaultConfigPaths = []string{"postern.toml", "/etc/postern/postern.toml"}

// Source says where a process has its configuration from: a file, the environment and flags.
type Source struct {
	Path        string // of the file; "": the first default that exists
	DatabaseURL string // overrides the environment, and that the file
	Env         map[string]string
}

// Load reads the file. Without one, found is false and cfg has the defaults; so it has
// when the file cannot be used.
func (s *Source) Load() (cfg Config, found bool, err error) {
	path := s.file()
	if path != "" {
		err = s.knownFolder(path)
	}
	if path != "" && err == nil {
		cfg, err = Read(path)
	}
	if path == "" || err != nil {
		cfg = Defaults()
	}
	if u := s.Env["POSTERN_DATABASE_URL"]; u != "" {
		cfg.Database.URL, cfg.Database.Private = u, ""
	}
	if s.DatabaseURL != "" {
		cfg.Database.URL, cfg.Database.Private = s.DatabaseURL, ""
	}
	if f := s.Env["POSTERN_SECRET_KEY_FILE"]; f != "" {
		cfg.SecretKeyFile = f
	}
	return cfg, path != "" && err == nil, err
}

// file is the file that path names or the first default that exists, "" if
// none does.
func (s *Source) file() string {
	if s.Path != "" {
		return s.Path
	}
	for _, p := range defaultConfigPaths {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// knownFolder refuses a file that was found in the folder where the command stands and
// that another user put there, who would choose the database and the files that are
// used. Behind sudo, that user's own is meant.
func (s *Source) knownFolder(path string) error {
	if s.Path != "" || path != defaultConfigPaths[0] {
		return nil
	}
	var also []int
	if id, err := strconv.Atoi(s.Env["SUDO_UID"]); err == nil && os.Geteuid() == 0 {
		also = append(also, id)
	}
	if err := owned.Mine(path, also...); err != nil {
		return fmt.Errorf("configuration: %w: name it with --config if it is what you mean", err)
	}
	return nil
}

// SecretKeyPath is where the key lies that seals upstream passwords and private keys.
func (s *Source) SecretKeyPath(cfg Config) string {
	if cfg.SecretKeyFile != "" {
		return cfg.SecretKeyFile
	}
	if state := s.Env["XDG_STATE_HOME"]; state != "" && os.Geteuid() != 0 {
		return filepath.Join(state, "postern", "secret.key")
	}
	if home := s.Env["HOME"]; home != "" && os.Geteuid() != 0 {
		return filepath.Join(home, ".local", "state", "postern", "secret.key")
	}
	return "/var/lib/postern/secret.key"
}

// Sealer opens the ring of keys, making it and its folder when they are not there yet.
func (s *Source) Sealer(cfg Config) (*seal.Sealer, error) {
	path := s.SecretKeyPath(cfg)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("folder of the key (secret_key_file in the configuration says where): %w", err)
	}
	sealer, err := seal.LoadOrCreate(path)
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err) // which names it
	}
	return sealer, nil
}

// PresentSealer is sealer for those who only look: it makes no key. Without one it
// is nil, which opens no password.
func (s *Source) PresentSealer(cfg Config) (*seal.Sealer, error) {
	if _, err := os.Stat(s.SecretKeyPath(cfg)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return s.Sealer(cfg)
}

// Exposed finds which files with a secret of the database everybody may read: the
// configuration with a password in its URL, the file of passwords (.pgpass), and the key
// of a client's certificate.
func (s *Source) Exposed(databaseURL string) (open []error) {
	var files []string
	if path := s.file(); path != "" {
		// Without what the environment puts in its place.
		if cfg, err := Read(path); err == nil && HasPassword(cfg.Database.URL) {
			files = append(files, path)
		}
	}
	if databaseURL != "" {
		files = append(files, cmp.Or(urlSetting(databaseURL, "passfile"), s.Env["PGPASSFILE"], passfile()),
			cmp.Or(urlSetting(databaseURL, "sslkey"), s.Env["PGSSLKEY"]))
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

// HasPassword reports that a database URL, of either form, has a password in it.
func HasPassword(databaseURL string) bool {
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
