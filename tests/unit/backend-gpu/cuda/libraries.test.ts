import { describe, expect, it } from 'vitest';
import {
  cublasLibrary,
  cudaLibrary,
  LibrarySearchError,
  libraryCandidates,
  libraryFolders,
  loadLibrary,
  nvrtcLibrary,
  type SearchPlaces,
} from '../../../../packages/backend-gpu/src/cuda/libraries';

const wheels = '/home/ada/env/lib/python3.12/site-packages/nvidia';

const machine = (
  folders: Record<string, readonly string[]>,
  environment: Record<string, string> = {},
): SearchPlaces => ({
  environment,
  home: '/home/ada',
  list: (folder) => folders[folder] ?? [],
});

describe('the search for libraries', () => {
  it('looks where the environment says, then in toolkits, then in wheels', () => {
    const places = machine(
      {
        '/opt/mine': ['libnvrtc.so.12'],
        '/opt/cuda/lib64': ['libnvrtc.so.13'],
        '/usr/local': ['bin', 'cuda', 'cuda-13.0', 'cuda-gdb'],
        '/usr/local/cuda/lib64': ['libnvrtc.so', 'libnvrtc.so.13'],
        '/home/ada/env/lib': ['python3.12', 'pkgconfig'],
        [wheels]: ['cu13', 'nccl'],
        [`${wheels}/cu13/lib`]: ['libnvrtc.so.13', 'libcublasLt.so.13'],
      },
      {
        LD_LIBRARY_PATH: '/opt/mine::/opt/nothing',
        CUDA_PATH: '/opt/cuda',
        VIRTUAL_ENV: '/home/ada/env',
      },
    );
    expect(libraryCandidates(nvrtcLibrary, places)).toEqual([
      '/opt/mine/libnvrtc.so.12',
      '/opt/cuda/lib64/libnvrtc.so.13',
      '/usr/local/cuda/lib64/libnvrtc.so.13',
      '/usr/local/cuda/lib64/libnvrtc.so',
      `${wheels}/cu13/lib/libnvrtc.so.13`,
      'libnvrtc.so.13',
      'libnvrtc.so.12',
      'libnvrtc.so',
    ]);
    expect(libraryCandidates(cublasLibrary, places)[0]).toBe(
      `${wheels}/cu13/lib/libcublasLt.so.13`,
    );
    expect(libraryFolders(places)).not.toContain('/usr/local/cuda-gdb/lib64');
  });

  it('asks the loader first for the library of the driver', () => {
    const places = machine({ '/usr/lib64': ['libcuda.so.1'] });
    expect(libraryCandidates(cudaLibrary, places)).toEqual([
      'libcuda.so.1',
      'libcuda.so',
      '/usr/lib64/libcuda.so.1',
    ]);
  });

  it('takes the first that loads', () => {
    const places = machine({ '/usr/lib64': ['libnvrtc.so.13'] });
    const loaded = loadLibrary(
      nvrtcLibrary,
      (path) => {
        if (path.startsWith('/')) throw new Error('wrong ELF class');
        return path.length;
      },
      places,
    );
    expect(loaded).toEqual({ path: 'libnvrtc.so.13', functions: 14 });
  });

  it('says where it looked and what the loader answered', () => {
    const places = machine({ '/usr/lib64': ['libcuda.so.1', 'libz.so'] });
    const load = () =>
      loadLibrary(
        cudaLibrary,
        (path) => {
          throw new Error(`cannot open ${path.length}`);
        },
        places,
      );
    expect(load).toThrow(LibrarySearchError);
    expect(load).toThrow(
      'libcuda does not load; looked in /usr/lib64 and where the loader looks: libcuda.so.1: cannot open 12; libcuda.so: cannot open 10; /usr/lib64/libcuda.so.1: cannot open 23',
    );
  });
});
