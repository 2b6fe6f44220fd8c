# For CMAKE_PROJECT_INCLUDE, where ROS 2 comes from PyPI's wheels. A ROS installation has no need of this file.

function(loftr_ros_mend_include_directories)
  # The wheels' exported targets name the include folders of the machine that built them (/opt/python/...), and CMake
  # refuses a target whose include folder does not exist.
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT directories)
      continue()
    endif()
    set(existing "")
    foreach(directory IN LISTS directories)
      # What is not a plain absolute path (a generator expression) can be judged by CMake alone.
      if(EXISTS "${directory}" OR NOT IS_ABSOLUTE "${directory}")
        list(APPEND existing "${directory}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
  endforeach()

  # Ours would pass the same slip on: to export Python's and NumPy's folders of this environment, which CMake refuses
  # too if the environment is inside the source folder.
  if(TARGET ${PROJECT_NAME}__rosidl_generator_py)
    set_target_properties(${PROJECT_NAME}__rosidl_generator_py PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "")
  endif()
endfunction()

# Deferred to the end of CMakeLists.txt: the targets come with what it calls.
cmake_language(DEFER CALL loftr_ros_mend_include_directories)
