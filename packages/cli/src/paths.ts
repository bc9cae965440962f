import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The model that comes with the program: as far from here as from `dist`. */
export const embeddedModel = fileURLToPath(
  new URL('../models/default', import.meta.url),
);

/**
 * Where the settings are looked for: the XDG folder, else `~/.config`; nowhere
 * where the user has no home.
 */
export function defaultConfigFile(): string | undefined {
  const { XDG_CONFIG_HOME } = process.env;
  const home = homeFolder();
  const base = XDG_CONFIG_HOME || (home && join(home, '.config'));
  return base && join(base, 'asa', 'config.json');
}

function homeFolder(): string | undefined {
  try {
    return homedir() || undefined;
  } catch {
    // A user without an entry in the list of users, and without HOME.
    return undefined;
  }
}
