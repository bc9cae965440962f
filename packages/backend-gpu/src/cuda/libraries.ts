import { existsSync, readdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** What the search looks at; other than the machine's own in tests. */
export interface SearchPlaces {
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly home: string;
  /** The names in a folder; none where it is not there. */
  list(folder: string): readonly string[];
}

/** A library, and the version numbers that its file name may end in. */
export interface LibraryName {
  readonly name: 'cuda' | 'nvrtc' | 'cublasLt';
  readonly versions: readonly number[];
}

export const cudaLibrary: LibraryName = { name: 'cuda', versions: [1] };
export const nvrtcLibrary: LibraryName = { name: 'nvrtc', versions: [13, 12] };
export const cublasLibrary: LibraryName = {
  name: 'cublasLt',
  versions: [13, 12],
};

const thisMachine: SearchPlaces = {
  environment: process.env,
  home: homedir(),
  list: (folder) => (existsSync(folder) ? readdirSync(folder) : []),
};

/**
 * The folders that may hold CUDA's libraries, in the order of the search: what
 * the environment names, the toolkit's, the system's, Python's wheels.
 */
export function libraryFolders(places: SearchPlaces): string[] {
  const { environment, list } = places;
  const split = (text = '') => text.split(':').filter((part) => part);
  const roots = [environment.CUDA_PATH, environment.CUDA_HOME].filter(
    (root) => root !== undefined,
  );
  const toolkits = list('/usr/local')
    .filter((name) => /^cuda(-[\d.]+)?$/.test(name))
    .sort()
    .map((name) => join('/usr/local', name));
  return [
    ...split(environment.LD_LIBRARY_PATH),
    ...[...roots, ...toolkits].flatMap((root) => [
      join(root, 'lib64'),
      join(root, 'targets/x86_64-linux/lib'),
    ]),
    '/usr/lib/x86_64-linux-gnu',
    '/usr/lib/aarch64-linux-gnu',
    '/usr/lib64',
    '/usr/local/nvidia/lib64',
    '/usr/lib/wsl/lib',
    ...wheelFolders(places),
  ].filter((folder, index, all) => all.indexOf(folder) === index);
}

/** `nvidia/<part>/lib` in the site-packages of every Python that shows. */
function wheelFolders({ environment, home, list }: SearchPlaces): string[] {
  const prefixes = [
    environment.VIRTUAL_ENV,
    environment.CONDA_PREFIX,
    join(home, '.local'),
    '/usr/local',
    '/usr',
  ].filter((prefix) => prefix !== undefined);
  return prefixes.flatMap((prefix) =>
    list(join(prefix, 'lib'))
      .filter((name) => /^python3/.test(name))
      .flatMap((python) =>
        ['site-packages', 'dist-packages'].flatMap((packages) => {
          const wheels = join(prefix, 'lib', python, packages, 'nvidia');
          return list(wheels).map((part) => join(wheels, part, 'lib'));
        }),
      ),
  );
}

/** File names of a library, the newest first. */
function fileNames({ name, versions }: LibraryName): string[] {
  return [
    ...versions.map((version) => `lib${name}.so.${version}`),
    `lib${name}.so`,
  ];
}

/**
 * What to hand to the loader, in order: files that are there, then bare names,
 * for which the loader looks itself.
 */
export function libraryCandidates(
  library: LibraryName,
  places: SearchPlaces,
): string[] {
  const names = fileNames(library);
  const files = libraryFolders(places).flatMap((folder) => {
    const there = places.list(folder);
    return names
      .filter((name) => there.includes(name))
      .map((name) => join(folder, name));
  });
  // The driver's own library belongs to the kernel's driver: the system's
  // loader knows best which one that is.
  return library.name === 'cuda' ? [...names, ...files] : [...files, ...names];
}

export interface LoadedLibrary<Functions> {
  readonly functions: Functions;
  readonly path: string;
}

/** Why a library could not be loaded: each attempt with the loader's words. */
export class LibrarySearchError extends Error {
  constructor(
    readonly library: string,
    readonly attempts: readonly string[],
    folders: readonly string[],
  ) {
    super(
      `lib${library} does not load; looked in ${folders.join(', ')} and where the loader looks: ${attempts.join('; ')}`,
    );
  }
}

/** @throws LibrarySearchError with all that was tried. */
export function loadLibrary<Functions>(
  library: LibraryName,
  load: (path: string) => Functions,
  places: SearchPlaces = thisMachine,
): LoadedLibrary<Functions> {
  const attempts: string[] = [];
  for (const path of libraryCandidates(library, places)) {
    try {
      return { functions: load(path), path };
    } catch (error) {
      attempts.push(
        `${path}: ${error instanceof Error ? error.message : error}`,
      );
    }
  }
  const folders = libraryFolders(places).filter(
    (folder) => places.list(folder).length > 0,
  );
  throw new LibrarySearchError(library.name, attempts, folders);
}
