import { ArgumentError, CheckpointError } from '../errors';
import { type Folder, readText, removeTemporaries, writeText } from './files';

/**
 * A checkpoint of several files that changes as one. Each save is a subfolder,
 * `step-00001200`, and the file `latest` holds the name of the good one. A
 * folder cannot be renamed over a full one, but a file can: the rename of
 * `latest` is the moment at which the new checkpoint takes the old one's place.
 */
const LATEST = 'latest';
const VERSION = /^step-[0-9]{8,}(-again)?$/;

/**
 * Saves a checkpoint and removes the one before. A crash at any moment leaves
 * one of them to load; a save that fails leaves the old one, and what it wrote
 * goes at once or, after a crash, with the next save. One process at a time
 * may save in a folder.
 */
export async function saveVersion(
  folder: Folder,
  step: number,
  write: (version: Folder) => Promise<void>,
): Promise<void> {
  const current = await latestName(folder);
  const name = versionName(step, current);
  await removeTemporaries(folder);
  await removeOthers(folder, current);
  try {
    await write(await folder.subfolder(name));
  } catch (error) {
    await folder.remove(name).catch(() => {});
    throw error;
  }
  await writeText(folder, LATEST, `${name}\n`);
  await removeOthers(folder, name);
}

/**
 * The folder of the last checkpoint that was saved whole.
 * @throws CheckpointError when there is none.
 */
export async function openLatest(folder: Folder): Promise<Folder> {
  const name = await latestName(folder);
  if (name === undefined) {
    throw new CheckpointError(folder.path, undefined, 'holds no checkpoint');
  }
  if (!(await folder.has(name))) {
    const rule = `must name a subfolder, got ${name}, which is not there`;
    throw new CheckpointError(`${folder.path}/${LATEST}`, undefined, rule);
  }
  return folder.subfolder(name);
}

async function latestName(folder: Folder): Promise<string | undefined> {
  if (!(await folder.has(LATEST))) return undefined;
  const name = (await readText(folder, LATEST, 100)).trimEnd();
  if (VERSION.test(name)) return name;
  throw new CheckpointError(
    `${folder.path}/${LATEST}`,
    undefined,
    `must name a checkpoint such as step-00001200, got ${JSON.stringify(name)}`,
  );
}

/** A step that is saved again must not write into its own good checkpoint. */
function versionName(step: number, current: string | undefined): string {
  if (!Number.isSafeInteger(step) || step < 0) {
    throw new ArgumentError(
      `saveVersion: step must be a whole number from 0 on, got ${step}`,
    );
  }
  const name = `step-${String(step).padStart(8, '0')}`;
  return name === current ? `${name}-again` : name;
}

async function removeOthers(
  folder: Folder,
  keep: string | undefined,
): Promise<void> {
  for (const name of await folder.list()) {
    if (VERSION.test(name) && name !== keep) await folder.remove(name);
  }
}
